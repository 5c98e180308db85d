"""What a client is told when it gets no vectors: a status and a body in the shape of OpenAI's API."""

import math
from typing import Any

__all__ = ["ApiError", "OverloadedError", "error_body"]


class ApiError(Exception):
    """An answer that is no vector.

    Attributes:
        status: Of the HTTP response.
        kind: What machines tell it by; OpenAI's `code`, and the label of the metric.
        param: Field of the request that is at fault, if one is.
        retry_after_s: When to come again; None: never, as it is.
    """

    def __init__(
        self, status: int, kind: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        """An error to answer with; `message` holds no text of a client."""
        super().__init__(message)
        self.status, self.kind, self.message, self.param = status, kind, message, param
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """Of the HTTP response."""
        return {} if self.retry_after_s is None else {"Retry-After": str(max(math.ceil(self.retry_after_s), 1))}

    @property
    def body(self) -> dict[str, Any]:
        """Of the HTTP response."""
        return error_body(self.status, self.kind, self.message, param=self.param)


class OverloadedError(ApiError):
    """More is waiting than the server takes on."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        """To be tried again after `retry_after_s`."""
        super().__init__(429, "overloaded", message, retry_after_s=retry_after_s)


def error_body(status: int, kind: str, message: str, *, param: str | None = None) -> dict[str, Any]:
    """The body of an answer with this status, as OpenAI's API words it."""
    if status == 401:
        family = "authentication_error"
    elif status == 429:
        family = "rate_limit_error"
    else:
        family = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": family, "param": param, "code": kind}}
