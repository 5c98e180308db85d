"""Server processes: `promptembedder serve`, a plain server, and infinity where it is installed."""

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.load import LoadClient
from promptembedder import extras
from promptembedder.backbone import Backbone, quiet_transformers
from promptembedder.errors import ConfigError

__all__ = ["INFINITY", "OURS", "PLAIN", "RunningServer", "baseline_servers", "our_server", "save_plain_model"]

OURS, PLAIN, INFINITY = "promptembedder", "FastAPI + sentence-transformers", "infinity"
_START_S = 300.0
_MODEL = "served"


@dataclass(frozen=True)
class RunningServer:
    """Server that is ready for requests.

    Attributes:
        path: URL path of embeddings requests.
        takes_instructions: If False, a client prepends the instruction to each text.
    """

    name: str
    port: int
    path: str
    process_id: int
    takes_instructions: bool

    def memory_bytes(self) -> int:
        """Return the memory of the server in bytes, without swapped-out memory."""
        return int(extras.require("psutil", extra="bench").Process(self.process_id).memory_info().rss)

    def client(self) -> LoadClient:
        """Return a new connection to the server."""
        return LoadClient(self.port, self.path)

    def body(self, texts: Sequence[str], instructions: Sequence[str] = ()) -> dict[str, object]:
        """Return the request body. If the server takes no instructions, prepend the first one to each text."""
        body: dict[str, object] = {"model": _MODEL, "encoding_format": "base64"}
        if self.takes_instructions:
            return {**body, "input": list(texts), **({"instruction": list(instructions)} if instructions else {})}
        head = f"Instruct: {instructions[0]}\nQuery: " if instructions else ""
        return {**body, "input": [head + text for text in texts]}


@contextmanager
def our_server(folder: Path, *, max_waiting: int = 2048) -> Iterator[RunningServer]:
    """Run `promptembedder serve` with the model in `folder`."""
    words = [sys.executable, "-m", "promptembedder", "serve", str(folder), "--model-name", _MODEL, "--warmup", "full"]
    words += ["--max-waiting", str(max_waiting), "--deadline-s", "600", "--truncate", "right"]
    with _started([*words, "--port", "{port}"], folder.parent / "promptembedder.log") as (port, process):
        yield RunningServer(OURS, port, "/v1/embeddings", process, takes_instructions=True)


@contextmanager
def baseline_servers(folder: Path, dtype: str, infinity: Path | None) -> Iterator[list[RunningServer]]:
    """Run the plain server, and infinity if its program is given, with the sentence-transformers model in `folder`."""
    with ExitStack() as servers:
        plain = [sys.executable, "-m", "benchmarks.serving.plain_server", str(folder), "{port}", dtype]
        port, process = servers.enter_context(_started(plain, folder.parent / "plain.log"))
        found = [RunningServer(PLAIN, port, "/v1/embeddings", process, takes_instructions=False)]
        if infinity is not None:
            words = [str(infinity), "v2", "--model-id", str(folder), "--served-model-name", _MODEL, "--engine", "torch"]
            words += ["--device", "cpu", "--dtype", dtype, "--no-bettertransformer", "--port", "{port}"]
            port, process = servers.enter_context(_started(words, folder.parent / "infinity.log"))
            found.append(RunningServer(INFINITY, port, "/embeddings", process, takes_instructions=False))
        yield found


def save_plain_model(reader: Backbone, folder: Path, *, max_length: int) -> None:
    """Save the reader as a sentence-transformers model with mean pooling, in a format that older versions can load."""
    with quiet_transformers():
        reader.model.save_pretrained(folder)
        reader.tokenizer.hf.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pad = reader.tokenizer.hf.pad_token or reader.tokenizer.hf.eos_token
    changes = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": pad}
    path.write_text(json.dumps(tokenizer | changes), encoding="utf-8")
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}), encoding="utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": reader.dim, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


@contextmanager
def _started(words: Sequence[str], log: Path) -> Iterator[tuple[int, int]]:
    """Start a process that listens at a free port, and wait for its first successful response."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [word.replace("{port}", str(port)) for word in words]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=offline)
        try:
            _wait_for(port, process, log)
            yield port, process.pid
        finally:
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_for(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
    raise ConfigError(f"a server did not start: {' '.join(last) or 'it printed nothing'}. Its log: {log}")
