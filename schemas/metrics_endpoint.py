"""Where a process publishes its Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, start_http_server

from schemas import flags
from schemas.process import UserError


class MetricsEndpoint:
    """Answers `/metrics` from its making to `close`, by a daemon thread.

    Args:
        port: 0 takes a free one.
        registry: what to publish.
        host: address to listen on.

    Attributes:
        port: the one it is bound to.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, port: int, registry: CollectorRegistry, host: str = "127.0.0.1") -> None:
        try:
            self._httpd, self._thread = start_http_server(port, addr=host, registry=registry)
        except OSError as error:
            raise UserError(
                f"cannot publish metrics on {flags.address(host, port)}: {error.strerror}; choose another --metrics_port"
            ) from error
        self.port: int = self._httpd.server_port

    def close(self) -> None:
        """Stop publishing."""
        self._httpd.shutdown()
        self._httpd.server_close()
        self._thread.join()
