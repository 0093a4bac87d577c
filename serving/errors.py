"""How serving says no: one error for a request, one for a model version, one for the client's side."""

import grpc

from schemas.process import UserError


class RequestError(Exception):
    """A request that cannot be answered; becomes the gRPC status that TF Serving would give."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


class ModelLoadError(Exception):
    """A version directory that does not hold a model that can answer; the message says why."""


class ServingError(UserError):
    """A call to a model server that failed; the message names the server, the reason and the remedy.

    `code` is the gRPC status, or None when the server answered with something unusable.
    """

    def __init__(self, message: str, code: grpc.StatusCode | None = None) -> None:
        super().__init__(message)
        self.code = code
