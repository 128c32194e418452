"""What uvicorn leaves open: an end to requests that do not arrive, and answers that arrive before the request has."""

import asyncio
import contextlib
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 20.0  # from connecting, or from the last answer, until a request's headers are there
HEADER_BYTES = 64 << 10
_DISCARD_SECONDS = 10.0  # a client that is still sending does not read the answer


class PatientProtocol(HttpToolsProtocol):
    """Closes connections whose request line and headers are slow or endless; bodies have limits of their own."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Starts the clock."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Takes bytes of a request."""
        waiting = self._waits_for_headers()
        self._header_bytes = self._header_bytes + len(data) if waiting else 0
        if waiting and self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)
        super().data_received(data)
        if not self._waits_for_headers():
            self._stop()
        elif self._header_bytes > HEADER_BYTES:
            self._give_up()

    def _waits_for_headers(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self._waits_for_headers():
            self.transport.close()


def reads_to_the_end(app: ASGIApp) -> ASGIApp:
    """The app, which reads what it left of a body before it answers.

    To close a connection with bytes unread resets it, and the client loses the answer. One that is still sending after
    _DISCARD_SECONDS, was given up as too slow (408) or waits to be asked for the body is told that the connection ends.
    """
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        more, asked = True, (b'expect', b'100-continue') not in _lower(scope)

        async def counted_receive() -> Message:
            nonlocal more, asked
            asked = True
            message = await receive()
            more = message.get('more_body', False)
            return message

        async def send_at_the_end(message: Message) -> None:
            if more and message['type'] == 'http.response.start':
                if asked and message['status'] != 408:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_DISCARD_SECONDS):
                            while more:
                                await counted_receive()
                if more:
                    message = {**message, 'headers': [*message['headers'], (b'connection', b'close')]}
            await send(message)

        await app(scope, counted_receive, send_at_the_end)

    return answer


def _lower(scope: Scope) -> list[tuple[bytes, bytes]]:
    return [(name, value.lower()) for name, value in scope['headers']]
