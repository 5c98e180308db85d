"""The way in: who may ask, how much they may send, and what is noted of it. Plain ASGI, before any route."""

import asyncio
import base64
import binascii
import hmac
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import orjson

from promptembedder.errors import ConfigError
from promptembedder.server.errors import ApiError
from promptembedder.server.state import ServerState
from promptembedder.server.telemetry import Tracer

__all__ = ["ApiKeys", "FrontDoor"]

logger = logging.getLogger("promptembedder.server.requests")

_BODY_TIMEOUT_S = 30.0
_MIN_KEY_CHARS = 16
_OPEN_PATHS = frozenset({"/health"})
_WATCHED = frozenset({"/health", "/metrics"})

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class ApiKeys:
    """The keys that may ask; none: everybody may."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        """Remember their hashes.

        Raises:
            ConfigError: A key is short enough to be guessed.
        """
        if any(len(key) < _MIN_KEY_CHARS for key in keys):
            raise ConfigError(f"an API key has fewer than {_MIN_KEY_CHARS} characters. Make one: openssl rand -hex 24")
        self._digests = [sha256(key.encode()).digest() for key in dict.fromkeys(keys)]

    def __bool__(self) -> bool:
        """Whether a key is needed."""
        return bool(self._digests)

    def tenant(self, authorization: bytes | None) -> str | None:
        """A name for whose key this header holds; None for nobody's. Takes as long whichever key it is."""
        if not self._digests:
            return ""
        digest = sha256(_key_in(authorization or b"")).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return f"key-{matches.index(True)}" if any(matches) else None


def _key_in(authorization: bytes) -> bytes:
    """The key of a `Bearer` header, or the password of a `Basic` one, as which browsers send it."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(rest.strip(), validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


@dataclass
class _Noted:
    """What is known of an answer once it is on its way."""

    status: int = 0


class FrontDoor:
    """Around the application: key, size and time of the body, request id, metrics and one line in the log."""

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
        """Let requests through to `app`.

        Args:
            routes: Paths that metrics tell apart; any other counts as `other`.
        """
        self._app, self._state, self._keys, self._max_body_bytes = app, state, keys, max_body_bytes
        self._routes, self._tracer = frozenset(routes), tracer

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "websocket":  # no route takes any: refused here, where keys are asked for
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, noted, request_id = time.monotonic(), _Noted(), uuid.uuid4().hex
        route = scope["path"] if scope["path"] in self._routes else "other"
        scope.setdefault("state", {})

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        fields: dict[str, Any] = {"id": request_id, "method": scope["method"], "route": route}
        self._state.in_flight += 1
        self._state.metrics.in_flight.inc()
        with self._tracer.request(f"{scope['method']} {route}", dict(scope["headers"]), fields):
            try:
                await self._admitted(scope, receive, note)
            finally:
                self._state.in_flight -= 1
                self._state.metrics.in_flight.dec()
                own = scope["state"]
                fields |= {"status": noted.status, "tenant": own.get("tenant", ""), **own.get("log", {})}
                self._note_end(fields, route, noted.status, time.monotonic() - start)

    def _note_end(self, fields: dict[str, Any], route: str, status: int, seconds: float) -> None:
        metrics = self._state.metrics
        # a client that went away gets no status
        metrics.requests.labels(route, str(status or "gone")).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        # whoever watches asks for these every few seconds
        level = logging.DEBUG if route in _WATCHED and status == 200 else logging.INFO
        logger.log(level, "request", extra={"fields": {**fields, "seconds": round(seconds, 4)}})

    async def _admitted(self, scope: Message, receive: Receive, send: Send) -> None:
        try:
            # the path as the server parsed it, never one rebuilt from headers
            if scope["path"] not in _OPEN_PATHS:
                headers = dict(scope["headers"])
                tenant = self._keys.tenant(headers.get(b"authorization"))
                if tenant is None:
                    raise ApiError(401, "invalid_api_key", "a valid API key is needed: Authorization: Bearer KEY.")
                scope["state"]["tenant"] = tenant
            body = await self._body(scope, receive)
        except ApiError as error:
            self._state.metrics.errors.labels(error.kind).inc()
            await _refuse(error, send)
            return
        if body is not None:
            await self._app(scope, _replayed(body, receive), send)

    async def _body(self, scope: Message, receive: Receive) -> bytes | None:
        """The whole body; None if the client went away."""
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_body_bytes:
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
            raise ApiError(408, "slow_body", f"the body did not arrive within {_BODY_TIMEOUT_S:g} s.") from None

    def _too_large(self) -> ApiError:
        message = f"the body is larger than {self._max_body_bytes} bytes. Send fewer texts at a time."
        return ApiError(413, "body_too_large", message)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body in one piece, then what comes after it: that the client went away."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message


async def _refuse(error: ApiError, send: Send) -> None:
    headers = {"Content-Type": "application/json", **error.headers}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="promptembedder", charset="UTF-8"'
    if error.status in (408, 413):
        headers["Connection"] = "close"  # what is left of the body is not read
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": orjson.dumps(error.body)})
