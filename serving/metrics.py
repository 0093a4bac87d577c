"""What a model server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from schemas.metrics_endpoint import MetricsEndpoint

# Finest around the 20 ms that a ranking may take.
_BUCKETS_S = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Metrics:
    """Requests, their latency in seconds, the loaded version and the loads, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "freshet_requests", "Requests answered", ["method", "signature", "code"], registry=self.registry
        )
        self._latency = Histogram(
            "freshet_request_seconds",
            "Time from a request's decoding to its answer",
            ["method", "signature"],
            registry=self.registry,
            buckets=_BUCKETS_S,
        )
        self._version = Gauge("freshet_model_version", "Version that new requests are answered by", registry=self.registry)
        self._loads = Counter("freshet_model_loads", "Attempts to load a version", ["result"], registry=self.registry)

    def answered(self, method: str, signature: str, code: str, seconds: float) -> None:
        """One request was answered with the gRPC status `code`."""
        self._requests.labels(method, signature, code).inc()
        self._latency.labels(method, signature).observe(seconds)

    def loaded(self, version: int) -> None:
        """`version` answers from now on."""
        self._loads.labels("loaded").inc()
        self._version.set(version)

    def load_failed(self) -> None:
        """A version could not be loaded."""
        self._loads.labels("failed").inc()

    def serve(self, port: int) -> MetricsEndpoint:
        """Publish `/metrics` on the loopback interface; port 0 takes a free one.

        Raises:
            UserError: the port is in use.
        """
        return MetricsEndpoint(port, self.registry)
