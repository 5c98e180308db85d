"""Server process: listening socket, and draining on SIGTERM or SIGINT."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from promptembedder.errors import ConfigError
from promptembedder.server.state import Phase, ServerState

__all__ = ["bind_socket", "run_server"]

logger = logging.getLogger(__name__)


class _DrainingServer(uvicorn.Server):
    """Uvicorn server that keeps listening while active requests finish. The application rejects new ones with 503.

    Uvicorn itself closes its sockets at the first signal: clients would get a refused connection instead of a 503.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState, drain_s: float) -> None:
        super().__init__(config)
        self._state, self._drain_s = state, drain_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start draining at the first signal, exit immediately at the second."""
        if self._state.phase is Phase.DRAINING or self._loop is None:
            self.force_exit = self.should_exit = True
            return
        self._state.phase = Phase.DRAINING
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def abort(self) -> None:
        """Exit without draining, because there is no model."""
        self.should_exit = True

    def _start_draining(self, name: str) -> None:
        logger.info("%s: draining, %d active requests", name, self._state.in_flight)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._drain_s
        while self._state.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._state.in_flight:
            logger.warning("%d requests did not finish within %g s", self._state.in_flight, self._drain_s)
        self.should_exit = True


def bind_socket(host: str, port: int) -> socket.socket:
    """Bind a listening socket to the address. Port 0 selects a free port.

    Raises:
        ConfigError: If the address is in use or does not belong to this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(2048)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason}. Try another --port or --host.") from error
    return bound


def run_server(app: FastAPI, *, bound: socket.socket, state: ServerState, drain_s: float) -> None:
    """Serve requests on a bound socket until SIGTERM or SIGINT, then give active requests `drain_s` seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # requests left after draining are aborted
        timeout_keep_alive=30,
    )
    server = _DrainingServer(config, state, drain_s)
    state.stop = server.abort
    server.run(sockets=[bound])
