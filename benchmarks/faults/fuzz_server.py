"""Fuzzed request bodies, sent to a server in its default configuration."""

import http.client
import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.faults.fuzz_inputs import mutated_json
from benchmarks.faults.fuzz_reader import FuzzedReader
from benchmarks.faults.model import tiny_embedder
from benchmarks.serving.servers import our_server
from promptembedder.errors import DataError

__all__ = ["bodies"]

_TIMEOUT_S = 30.0
_INSTRUCTION = "Find the same thing"
# status codes of documented refusals: 500 and above are server faults
_REFUSALS = frozenset({400, 404, 405, 408, 413, 422, 429})


class _Connection:
    """Persistent connection, open for as long as the server allows."""

    def __init__(self, port: int) -> None:
        self._client = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)

    def answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Return status and body of the response. Retry once if the server has closed the connection."""
        for attempt in (0, 1):
            try:
                self._client.request("POST", path, body, {"Content-Type": "application/json"})
                response = self._client.getresponse()
                return response.status, response.read()
            except (ConnectionError, http.client.BadStatusLine):
                self._client.close()
                if attempt:
                    raise
        raise AssertionError


def bodies(folder: Path, resources: ExitStack) -> FuzzedReader:
    """Alternate between `/v1/embeddings` and `/embed`. Expect unit vectors, or an error below 500 in OpenAI's form."""
    model = tiny_embedder()
    model.compile_instructions([_INSTRUCTION])
    model.save(str(folder / "model"), create_model_card=False)
    server = resources.enter_context(our_server(folder / "model"))
    connection = _Connection(server.port)
    openai: dict[str, Any] = {
        "input": ["a text", "b"],
        "model": "served",
        "instruction": _INSTRUCTION,
        "encoding_format": "float",
    }
    openai |= {"dimensions": 4, "user": "u", "truncate": "right"}
    native: dict[str, Any] = {
        "inputs": "a text",
        "normalize": True,
        "truncate": True,
        "truncation_direction": "left",
        "dimensions": 2,
    }
    native |= {"instruction": "Find it"}
    ids = {"input": [[1, 2], [3]], "instruction": ["Find it", _INSTRUCTION], "encoding_format": "base64"}

    def read(data: bytes) -> object:
        path = "/embed" if b'"inputs"' in data else "/v1/embeddings"
        status, answer = connection.answer(path, data)
        content = json.loads(answer)
        if status == 200:
            rows = content if path == "/embed" else [row["embedding"] for row in content["data"]]
            for row in rows:
                if not isinstance(row, str) and abs(math.hypot(*row) - 1) > 1e-3:
                    raise AssertionError(f"a vector of length {math.hypot(*row)}")
            return rows
        if status not in _REFUSALS or not {"message", "type", "param", "code"} <= content["error"].keys():
            raise AssertionError(f"status {status}: {answer[:100]!r}")
        raise DataError(f"{status}: {content['error']['message']}")

    return FuzzedReader(
        seeds=[json.dumps(one).encode() for one in (openai, native, ids)],
        mutate=mutated_json,
        read=read,
        stays_inside=False,  # the client connects to the server by design
    )
