"""Error responses: an HTTP status and a body in the format of OpenAI's API."""

import math
from typing import Any

__all__ = ["ApiError", "OverloadedError", "error_body"]


class ApiError(Exception):
    """An error response.

    Attributes:
        status: Status code of the HTTP response.
        kind: Machine-readable error code: OpenAI's `code` and the label of the error metric.
        param: Field of the request that caused the error, if any.
        retry_after_s: Seconds after which to retry. If None, the same request will fail again.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """Create the error. `message` must not contain text that a client sent."""
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Additional headers of the HTTP response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(math.ceil(self.retry_after_s), 1))}

    @property
    def body(self) -> dict[str, Any]:
        """JSON body of the HTTP response."""
        return error_body(self.status, self.kind, self.message, param=self.param)


class OverloadedError(ApiError):
    """The request queue is full."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """Create a 429 error with `Retry-After: retry_after_s`."""
        super().__init__(429, "overloaded", message, retry_after_s=retry_after_s)


def error_body(status: int, kind: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    """Build the JSON body of an error response in OpenAI's format."""
    if status == 401:
        family = "authentication_error"
    elif status == 429:
        family = "rate_limit_error"
    else:
        family = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": family, "param": param, "code": kind}}
