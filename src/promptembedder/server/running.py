"""The process: listening, draining on SIGTERM, and its end."""

import asyncio
import logging
import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from promptembedder.errors import ConfigError
from promptembedder.server.state import Phase, ServerState

__all__ = ["listening_socket", "run_server"]

logger = logging.getLogger(__name__)


class _DrainingServer(uvicorn.Server):
    """Goes on listening while requests under way finish; new ones are told so by the application.

    Uvicorn closes its sockets at the first signal, and a client would see a refused connection instead of a 503.
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
        """The first signal drains, the second ends at once."""
        if self._state.phase is Phase.DRAINING or self._loop is None:
            self.force_exit = self.should_exit = True
            return
        self._state.phase = Phase.DRAINING
        self._loop.call_soon_threadsafe(self._start_draining, signal.Signals(sig).name)

    def give_up(self) -> None:
        """End without draining: there is no model."""
        self.should_exit = True

    def _start_draining(self, name: str) -> None:
        logger.info("%s: draining, %d requests under way", name, self._state.in_flight)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._drain_s
        while self._state.in_flight and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        if self._state.in_flight:
            logger.warning("%d requests did not finish within %g s", self._state.in_flight, self._drain_s)
        self.should_exit = True


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address; port 0 takes any that is free.

    Raises:
        ConfigError: The address is taken, or is none of this machine's.
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
    """Answer requests at a bound socket until SIGTERM or SIGINT; those under way then get `drain_s` seconds."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,  # what is left after draining is given up
        timeout_keep_alive=30,
    )
    server = _DrainingServer(config, state, drain_s)
    state.stop = server.give_up
    server.run(sockets=[bound])
