"""Load generator for local embedding servers, with a closed loop (sequential clients) and an open loop (fixed rate)."""

import base64
import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from promptembedder.errors import ConfigError
from promptembedder.types import Float

__all__ = ["Answer", "LoadClient", "closed_loop", "open_loop"]

_TIMEOUT_S = 120.0
_MAX_CLIENTS = 256

Body = dict[str, object]


@dataclass(frozen=True)
class Answer:
    """Response to a request.

    Attributes:
        status: HTTP status. 0 if the connection failed.
        seconds: Time from sending the request to the last byte of the response.
        wrong: Fault found by a check of the vectors. None if there is none.
    """

    status: int
    seconds: float
    wrong: str | None = None


Check = Callable[[Body, Float[np.ndarray, "vectors dim"]], str | None]


class LoadClient:
    """Persistent connection to a local server, used by one thread at a time."""

    def __init__(self, port: int, path: str) -> None:
        """Connect to `path` of the server at `port` of the loopback address. Remote machines are not supported."""
        self._port, self._path = port, path
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, body: Body, check: Check | None = None) -> Answer:
        """Send one request."""
        content, start = json.dumps(body).encode(), time.perf_counter()
        try:
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
            self._connection.request("POST", self._path, content, {"Content-Type": "application/json"})
            answer = self._connection.getresponse()
            received = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            return Answer(0, time.perf_counter() - start)
        seconds = time.perf_counter() - start
        wrong = check(body, vectors_in(received)) if check is not None and answer.status == 200 else None
        return Answer(answer.status, seconds, wrong)

    def vectors(self, body: Body) -> Float[np.ndarray, "vectors dim"]:
        """Return the vectors of one request, which must succeed."""
        found: list[Float[np.ndarray, "vectors dim"]] = []
        answer = self.ask(body, lambda _, vectors: found.append(vectors))
        if not found:
            raise ConfigError(f"the server answered {answer.status} to a request of the benchmark.")
        return found[0]

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def vectors_in(received: bytes) -> Float[np.ndarray, "vectors dim"]:
    """Return the vectors of a response in OpenAI's format, as base64 or as lists."""
    rows = [one["embedding"] for one in json.loads(received)["data"]]
    return np.stack(
        [np.frombuffer(base64.b64decode(row), dtype="<f4") if isinstance(row, str) else np.float32(row) for row in rows]
    )


def closed_loop(
    port: int, path: str, bodies: Sequence[Body], *, clients: int, seconds: float
) -> tuple[list[Answer], float]:
    """Run clients that send requests sequentially. Return the answers and the total duration in seconds."""
    numbers, lock = itertools.cycle(range(len(bodies))), threading.Lock()
    start = time.perf_counter()
    until = start + seconds

    def one_client() -> list[Answer]:
        connection, answers = LoadClient(port, path), []
        while time.perf_counter() < until:
            with lock:
                body = bodies[next(numbers)]
            answers.append(connection.ask(body))
        connection.close()
        return answers

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(one_client) for _ in range(clients)]
        answers = [answer for future in futures for answer in future.result()]
    return answers, time.perf_counter() - start


def open_loop(
    port: int, path: str, bodies: Iterator[Body], *, rate: float, seconds: float, check: Check, seed: int = 0
) -> list[Answer]:
    """Send requests at random times, `rate` a second on average, independently of the answers to earlier requests."""
    drawn, connections = random.Random(seed), threading.local()

    def send(body: Body) -> Answer:
        if not hasattr(connections, "own"):
            connections.own = LoadClient(port, path)
        answer: Answer = connections.own.ask(body, check)
        return answer

    with ThreadPoolExecutor(_MAX_CLIENTS) as pool:
        futures, now = [], time.perf_counter()
        until = now + seconds
        while now < until:
            time.sleep(max(now - time.perf_counter(), 0))
            futures.append(pool.submit(send, next(bodies)))
            now += drawn.expovariate(rate)
        return [future.result() for future in futures]
