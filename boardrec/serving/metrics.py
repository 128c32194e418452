"""What Prometheus reads: requests, their time, batches, the queue, and which versions are served."""

from collections.abc import Callable

import prometheus_client
from prometheus_client.core import GaugeMetricFamily

PATH = '/monitoring/prometheus/metrics'  # as in TF Serving's usual configuration
CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST
_SECONDS = (.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One server's counters; several servers of a process have their own."""

    def __init__(self):
        self._registry = prometheus_client.CollectorRegistry()
        prometheus_client.ProcessCollector(registry=self._registry)
        self._requests = prometheus_client.Counter(
            'boardrec_requests', 'Requests by their canonical status', ['api', 'method', 'code'],
            registry=self._registry)
        self._request_seconds = prometheus_client.Histogram(
            'boardrec_request_seconds', 'From the first byte of a body to the answer', ['api', 'method'],
            buckets=_SECONDS, registry=self._registry)
        self._batch_rows = prometheus_client.Histogram(
            'boardrec_batch_rows', 'Rows in a call of the model', ['signature'], buckets=_ROWS, registry=self._registry)
        self._batch_seconds = prometheus_client.Histogram(
            'boardrec_batch_seconds', 'Time of a call of the model', ['signature'], buckets=_SECONDS,
            registry=self._registry)

    def request(self, api: str, method: str, code: str, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(api, method, code).inc()
        self._request_seconds.labels(api, method).observe(seconds)

    def batch(self, signature: str, rows: int, seconds: float) -> None:
        """Counts a call of the model."""
        self._batch_rows.labels(signature).observe(rows)
        self._batch_seconds.labels(signature).observe(seconds)

    def watch(self, queued: Callable[[], int], versions: Callable[[], list[int]]) -> None:
        """Has the queue's rows and the served versions asked for whenever they are read."""
        self._registry.register(_Now(queued, versions))

    def page(self) -> bytes:
        """The text that Prometheus reads."""
        return prometheus_client.generate_latest(self._registry)


class _Now:
    """Values that are asked for when they are read."""

    def __init__(self, queued: Callable[[], int], versions: Callable[[], list[int]]):
        self._queued, self._versions = queued, versions

    def collect(self) -> list[GaugeMetricFamily]:
        """What prometheus_client asks of a collector."""
        served = GaugeMetricFamily('boardrec_served_version', 'Versions that take requests', labels=['version'])
        for version in self._versions():
            served.add_metric([str(version)], 1)
        return [GaugeMetricFamily('boardrec_queued_rows', 'Rows that wait for the model', self._queued()), served]
