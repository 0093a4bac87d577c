"""Whether a gRPC server is there: none of those started here has gRPC's health service."""

import grpc

_ASK_S = 1.0


def speaks_grpc(address: str) -> bool:
    """Whether a gRPC server answers at HOST:PORT within a second: a connection, and HTTP/2 spoken over it."""
    # No proxy stands between two processes of one machine, whatever the environment says.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=_ASK_S)
        except grpc.FutureTimeoutError:
            return False
    return True
