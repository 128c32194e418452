"""Which of a server's failures are worth another try. What it answers: see predict_client_test."""

import grpc
from predict_transport import Again, Grpc, Missing, Refused, TimedOut
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
