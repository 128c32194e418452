"""What REST and gRPC have in common: from a request for a model's signature to its outputs, or a Failure."""

import asyncio
from collections.abc import Callable, Iterator
import contextlib
from typing import Any, NamedTuple

import numpy as np

from boardrec.serving.batching import Batcher
from boardrec.serving.failure import Failure
from boardrec.serving.servable import Arrays, Signature
from boardrec.serving.versions import Served, Versions


class Spec(NamedTuple):
    """Which model, and which version of it, a request is for: by number, by label, or else the newest."""

    name: str
    version: int | None = None
    label: str | None = None


class Service:
    """One model's versions and the batches that they run in."""

    def __init__(self, versions: Versions, batcher: Batcher, *, request_seconds: float, max_held_bytes: int):
        self.versions, self.batcher = versions, batcher
        self.request_seconds = request_seconds
        self._max_held_bytes, self._held_bytes = max_held_bytes, 0
        self.stopping = False  # takes requests still, but wants no more

    @property
    def ready(self) -> bool:
        """Whether a load balancer should send requests."""
        return bool(self.versions.available) and not self.stopping

    @contextlib.contextmanager
    def use(self, spec: Spec) -> Iterator[Served]:
        """The version that a request is for, kept in memory for the block. Raises Failure if it is not served."""
        if spec.name != self.versions.name:
            wanted = f'Latest({spec.name})' if spec.version is None else f'Specific({spec.name}, {spec.version})'
            raise Failure('NOT_FOUND', f'Servable not found for request: {wanted}')
        with self.versions.use(spec.version, spec.label) as served:
            yield served

    @contextlib.contextmanager
    def hold(self, count: int = 0) -> Iterator[Callable[[int], None]]:
        """Counts a request's bytes for a block, which may add to them by the function that it is given.

        Both raise Failure if all requests together would have too many; a single one may have any.
        """
        held = 0

        def add(count: int) -> None:
            nonlocal held
            if self._held_bytes > held and self._held_bytes + count > self._max_held_bytes:
                raise Failure('RESOURCE_EXHAUSTED', f'requests of {self._held_bytes} bytes are here already and '
                              f'{count} more would exceed --max_held_mib={self._max_held_bytes >> 20}; try again later')
            self._held_bytes += count
            held += count

        try:
            add(count)
            yield add
        finally:
            self._held_bytes -= held

    async def run(self, served: Served, signature: Signature, inputs: Arrays) -> dict[str, np.ndarray]:
        """A request's outputs. Raises Failure, also where it takes longer than request_seconds."""
        rows = signature.check(inputs)
        futures = self.batcher.submit(served.servable, signature, inputs, rows)
        for future in futures:
            self.versions.hold(served, future)
        try:
            async with asyncio.timeout(self.request_seconds):
                parts = await asyncio.gather(*map(asyncio.wrap_future, futures))
        except TimeoutError:
            raise Failure('DEADLINE_EXCEEDED', f'no answer within --request_seconds={self.request_seconds:g}') from None
        finally:
            for future in futures:
                future.cancel()  # what has not begun need not
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def statuses(self, spec: Spec) -> dict[int, Any]:
        """The state of the version that is asked for, or of all. Raises Failure if there is none."""
        known = self.versions.statuses() if spec.name == self.versions.name else {}
        version = self.versions.labels.get(spec.label) if spec.label else spec.version
        if spec.label and version is None:
            raise Failure('INVALID_ARGUMENT', f'Unrecognized servable version label: {spec.label}')
        if version is None and not known:
            raise Failure('NOT_FOUND', f'Could not find any versions of model {spec.name}')
        if version is not None and version not in known:
            raise Failure('NOT_FOUND', f'Could not find version {version} of model {spec.name}')
        return known if version is None else {version: known[version]}

    def facts(self) -> dict[str, Any]:
        """What the page shows of the newest version: name, version, and class names where boardrec exported it."""
        with self.use(Spec(self.versions.name)) as served:
            metadata = served.servable.metadata
            return {'name': self.versions.name, 'version': served.servable.version,
                    'class_names': metadata.get('class_names', []), 'threshold': metadata.get('threshold')}
