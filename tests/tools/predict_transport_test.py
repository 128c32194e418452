"""Which of a server's failures are worth another try. What it answers: see predict_client_test."""

import http.server
import threading

import grpc
from predict_transport import Again, Grpc, Missing, Refused, Rest, TimedOut
import pytest

from boardrec.config import UserError


@pytest.mark.parametrize(('code', 'reason', 'failure'), [
    ('UNAVAILABLE', 'away', Again), ('RESOURCE_EXHAUSTED', 'busy', Again), ('CANCELLED', 'stopping', Again),
    ('NOT_FOUND', 'no model', Missing), ('DEADLINE_EXCEEDED', 'late', TimedOut), ('INVALID_ARGUMENT', 'no', Refused),
    ('RESOURCE_EXHAUSTED', 'Received message larger than max (3 vs. 2)', Refused),
    ('UNAVAILABLE', 'Trying to connect an http1.x server (HTTP status 400)', UserError)])
def test_grpc_codes(code, reason, failure):
    transport = Grpc('127.0.0.1:1', 'm', 1.0)
    assert type(transport._failure(grpc.StatusCode[code], reason)) is failure
    transport.close()


class _Leaves(http.server.BaseHTTPRequestHandler):
    """Answers a request and ends the connection without having said so."""

    protocol_version = 'HTTP/1.1'

    def do_GET(self):
        body = b'{"model_spec": {"version": "3"}}'
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


def test_a_kept_connection_that_the_server_has_ended_is_no_failure():
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), _Leaves) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        transport = Rest(f'127.0.0.1:{server.server_port}', 'm', 5.0)
        assert [transport.newest() for _ in range(3)] == [3, 3, 3]
        transport.close()
        server.shutdown()
