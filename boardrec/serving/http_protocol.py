"""uvicorn's HTTP protocol, which waits for ever for a request that does not arrive, with an end to that."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_SECONDS = 20.0  # from connecting, or from the last answer, until a request's headers are there
HEADER_BYTES = 64 << 10


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
