"""ASGI middleware in front of all routes: authentication, body size and time limits, request log and metrics."""

import asyncio
import base64
import binascii
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

import orjson

from promptembedder.errors import ConfigError
from promptembedder.server.schemas import ApiError
from promptembedder.server.service import ServerState
from promptembedder.server.telemetry import Tracer

__all__ = ["ApiKeys", "RequestGate"]

logger = logging.getLogger("promptembedder.server.requests")

_BODY_TIMEOUT_S = 30.0
_MIN_KEY_CHARS = 16
_OPEN_PATHS = frozenset({"/health"})
_PROBED_PATHS = frozenset({"/health", "/metrics"})

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class ApiKeys:
    """API keys that give access. Without any key, authentication is off."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Store the SHA-256 digests of the keys.

        Raises:
            ConfigError: If a key is too short to be secure.
        """
        if any(len(key) < _MIN_KEY_CHARS for key in keys):
            raise ConfigError(
                f"an API key has fewer than {_MIN_KEY_CHARS} characters. Generate one: openssl rand -hex 24"
            )
        self._digests = [sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    def __bool__(self) -> bool:
        """True if requests need a key."""
        return bool(self._digests)

    def tenant(self, authorization: bytes | None) -> str | None:
        """Name the tenant whose key is in this header, in constant time. Return None if no key matches."""
        if not self._digests:
            return ""
        digest = sha256(_extract_key(authorization or b"")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return f"key-{matches.index(True)}" if any(matches) else None


def _extract_key(authorization: bytes) -> bytes:
    """Extract the key from a `Bearer` header, or the password from a `Basic` header, which browsers send."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class RequestGate:
    """Wraps the application: checks API key, body size and body time, adds a request id, metrics and a log line."""

    def __init__(
        self,
        app: App,
        *,
        state: ServerState,
        keys: ApiKeys,
        max_body_bytes: int,
        routes: Sequence[str],
        tracer: Tracer,
    ) -> None:
        """Wrap `app`.

        Args:
            state: State of the server, with its metrics.
            keys: API keys that give access.
            max_body_bytes: Maximum request body size in bytes.
            routes: Paths with a metrics label of their own. All other paths share the label `other`.
            tracer: Opens a span for each request.
        """
        self._app, self._state, self._keys, self._max_body_bytes = app, state, keys, max_body_bytes
        self._routes, self._tracer = frozenset(routes), tracer

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Process one request."""
        if scope["type"] == "websocket":  # no route accepts websockets: close before authentication
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, request_id = time.monotonic(), uuid.uuid4().hex
        route = scope["path"] if scope["path"] in self._routes else "other"
        scope.setdefault("state", {})
        fields: dict[str, Any] = {"id": request_id, "method": scope["method"], "route": route, "status": 0}

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields["status"] = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        self._state.in_flight += 1
        self._state.metrics.in_flight.inc()
        with self._tracer.request(f"{scope['method']} {route}", dict(scope["headers"]), fields):
            try:
                await self._admit(scope, receive, send_with_id)
            finally:
                self._state.in_flight -= 1
                self._state.metrics.in_flight.dec()
                fields |= {"tenant": scope["state"].get("tenant", ""), **scope["state"].get("log", {})}
                self._record(fields, time.monotonic() - start)

    def _record(self, fields: dict[str, Any], seconds: float) -> None:
        metrics, route, status = self._state.metrics, fields["route"], fields["status"]
        # there is no status if the client disconnected before the response
        metrics.requests.labels(route, str(status or "gone")).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        # monitoring requests these every few seconds
        level = logging.DEBUG if route in _PROBED_PATHS and status == 200 else logging.INFO
        logger.log(level, "request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})

    async def _admit(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            # the path as the server parsed it, never one rebuilt from headers
            if scope["path"] not in _OPEN_PATHS:
                headers = dict(scope["headers"])
                tenant = self._keys.tenant(headers.get(b"authorization"))
                if tenant is None:
                    raise ApiError(
                        401, "invalid_api_key", "a valid API key is needed. Send the header Authorization: Bearer KEY."
                    )
                scope["state"]["tenant"] = tenant
            body = await self._read_body(scope, receive)
        except ApiError as error:
            self._state.metrics.errors.labels(error.kind).inc()
            await _send_error(error, send)
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    async def _read_body(self, scope: Message, receive: Receive) -> bytes | None:
        """Read the complete body. Return None if the client disconnects."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        chunks, size = [], 0
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise ApiError(
                408, "slow_body", f"the body did not arrive within {_BODY_TIMEOUT_S:g} s. Send it faster, or in parts."
            ) from None

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._max_body_bytes} bytes. Send fewer texts per request."
        return ApiError(413, "body_too_large", message)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Build a `receive` that returns the body in one message, then the messages after it, such as a disconnect."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _send_error(error: ApiError, send: Send) -> None:
    headers = {"Content-Type": "application/json", **error.headers}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="promptembedder", charset="UTF-8"'
    if error.status in (408, 413):
        headers["Connection"] = "close"  # the rest of the body is not read
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": orjson.dumps(error.body)})
