"""Serving benchmark: requests per second compared with other servers, overhead of a request, and a long overload."""

import itertools
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.efficiency.methods import default_prompter, prepare_backbone
from benchmarks.serving.load import Answer, closed_loop, open_loop
from benchmarks.serving.servers import OURS, RunningServer, baseline_servers, our_server, save_plain_model
from benchmarks.speed.cases import Case, texts_of
from promptembedder.backbone import BackboneConfig, load_backbone, resolve_dtype
from promptembedder.errors import ConfigError
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import PromptEmbedder
from promptembedder.storage import describe_machine, versions

__all__ = ["INSTRUCTIONS", "ServingConfig", "run_serving"]

INSTRUCTIONS = (
    "Find texts about the same topic",
    "Find texts with the same mood",
    "Given a question, retrieve the passage that answers it",
    "Classify the intent of the text",
    "Find texts of the same style",
    "Retrieve texts that contradict the text",
    "Find texts by the same author",
    "Find texts that mention the same places",
)
_LONGEST = 512
_TEXTS = 200
_MIN_COSINE = 0.9999
_WARM_SHARE = 0.2  # initial share of a soak, after which memory should not grow

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Configuration of the serving benchmark.

    Attributes:
        clients: Number of clients that send requests sequentially.
        request_texts: Numbers of texts in a request of the mixed-length test.
        seconds: Duration of each round of a server.
        rounds: Number of rounds. The servers alternate.
        length: Text length in tokens in the instruction test.
        texts: Number of texts in a request of the instruction test.
        soak_seconds: Duration of the overload phase in seconds. 0 skips it.
        soak_waiting: Maximum number of queued vectors in the overload phase.
        overload: Request rate of the overload phase as a multiple of the server's capacity.
        infinity: Path of the program `infinity_emb` in its own environment. If None, infinity is skipped.
    """

    reader: str = "smollm2-135m"
    clients: int = 16
    request_texts: tuple[int, ...] = (1, 8)
    seconds: float = 30.0
    rounds: int = 3
    length: int = 128
    texts: int = 16
    soak_seconds: float = 600.0
    soak_waiting: int = 32
    overload: float = 2.0
    dtype: str = "auto"
    infinity: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("seconds", 0.1), ("rounds", 1), ("length", 8), ("texts", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.request_texts or not 1 <= min(self.request_texts) <= max(self.request_texts) <= _TEXTS:
            raise ConfigError(f"request_texts must be between 1 and {_TEXTS}, got {list(self.request_texts)}.")
        if self.clients > 256:
            raise ConfigError(f"clients must be at most 256, got {self.clients}.")
        if self.infinity is not None and not Path(self.infinity).is_file():
            raise ConfigError(f"{self.infinity} is no program. Give the path of infinity_emb.")

    @property
    def number_format(self) -> str:
        """Return the number format that `dtype` resolves to on this machine."""
        return str(resolve_dtype(self.dtype)).removeprefix("torch.")

    def command(self) -> str:
        """Return the command that repeats this measurement."""
        names = (
            "reader",
            "clients",
            "seconds",
            "rounds",
            "length",
            "texts",
            "soak_seconds",
            "soak_waiting",
            "overload",
        )
        words = [f"--{name.replace('_', '-')} {getattr(self, name)}" for name in names]
        words.append(f"--request-texts {','.join(map(str, self.request_texts))}")
        words += [f"--dtype {self.number_format}", *(["--infinity PATH"] if self.infinity else [])]
        return " ".join(["python -m benchmarks serve", *words])


def run_serving(config: ServingConfig, *, on_part: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Measure everything and return the content of `serve.json`.

    Raises:
        ConfigError: If a server does not start.
        BackboneError: If the reader cannot be loaded.
    """
    prepare_backbone(config.reader)
    with tempfile.TemporaryDirectory() as scratch:
        folder, plain = Path(scratch) / "model", Path(scratch) / "plain"
        model = _new_model(config)
        model.save(str(folder))
        save_plain_model(model.encoder.reader, plain, max_length=_LONGEST)
        reader = model.encoder.reader
        mixed = texts_of(Case(kind="mixed", length=_LONGEST, texts=_TEXTS), reader)
        alike = texts_of(Case(kind="length", length=config.length, texts=config.texts), reader, seed=1)
        infinity = None if config.infinity is None else Path(config.infinity)
        with our_server(folder) as ours, baseline_servers(plain, config.number_format, infinity) as rivals:
            rows = _mixed_rows(config, [ours, *rivals], mixed, on_part)
            rows += _instruction_rows(config, [ours, *rivals], alike, on_part)
            on_part("one client")
            rows += _overhead_rows(ours, model, texts_of(Case(kind="length", length=16, texts=1), reader))
            rows += _overhead_rows(ours, model, texts_of(Case(kind="length", length=128, texts=1), reader))
        if config.soak_seconds:
            on_part(f"overload, {config.soak_seconds:.0f} s")
            capacity = next(row["requests_per_second"] for row in rows if row["server"] == OURS)
            with our_server(folder, max_waiting=config.soak_waiting) as server:
                rows.append(_soak_row(config, server, model, mixed, capacity))
    return {"commands": [config.command()], "machine": describe_machine(), "versions": versions(), "rows": rows}


def _new_model(config: ServingConfig) -> PromptEmbedder:
    reader = BackboneConfig(source=config.reader, dtype=config.number_format)
    prompter = PrompterConfig(backbone=BackboneConfig(source=default_prompter(config.reader), dtype="float32"))
    model_config = ModelConfig(prompter=prompter, reader=reader, max_seq_length=_LONGEST)
    load_backbone(reader, head=False)  # fails before the prompter is loaded
    return PromptEmbedder.create(config=model_config, device="cpu")


def _mixed_rows(
    config: ServingConfig, servers: Sequence[RunningServer], texts: Sequence[str], on_part: Callable[[str], None]
) -> list[Row]:
    """Measure texts of 16 to 512 tokens, one or several in a request, from many concurrent clients."""
    rows = []
    for count in config.request_texts:
        bodies = [texts[start : start + count] for start in range(0, len(texts) - count + 1, count)]
        found: dict[str, list[tuple[list[Answer], float]]] = {server.name: [] for server in servers}
        for turn in range(config.rounds):
            for server in servers:
                on_part(f"mixed lengths, {count} texts a request, round {turn + 1}: {server.name}")
                asked = [server.body(body) for body in bodies]
                done = closed_loop(server.port, server.path, asked, clients=config.clients, seconds=config.seconds)
                found[server.name].append(done)
        rows += [_row("mixed", server, found[server.name], vectors=count) | {"texts": count} for server in servers]
    return rows


def _instruction_rows(
    config: ServingConfig, servers: Sequence[RunningServer], texts: Sequence[str], on_part: Callable[[str], None]
) -> list[Row]:
    """Measure the same texts under eight instructions: in one request if supported, else in eight at once."""
    ways = [(server, "one request") for server in servers if server.takes_instructions]
    ways += [(server, "eight requests") for server in servers]
    found: dict[tuple[str, str], list[tuple[list[Answer], float]]] = {(server.name, way): [] for server, way in ways}
    for turn in range(config.rounds):
        for server, way in ways:
            on_part(f"eight instructions, round {turn + 1}: {server.name}, {way}")
            # texts that differ each time, so that a server cannot return cached answers
            fresh = [f"{text} {turn}" for text in texts]
            if way == "one request":
                bodies = [server.body(fresh, INSTRUCTIONS)]
            else:
                bodies = [server.body(fresh, [instruction]) for instruction in INSTRUCTIONS]
            found[server.name, way].append(_all_at_once(server, bodies))
    rows = []
    for server, way in ways:
        row = _row("instructions", server, found[server.name, way], vectors=len(texts))
        seconds = [taken for _, taken in found[server.name, way]]
        rate = len(texts) * len(INSTRUCTIONS) / statistics.median(seconds)
        rows.append(row | {"way": way, "vectors_per_second": round(rate, 2)})
    return rows


def _all_at_once(server: RunningServer, bodies: Sequence[dict[str, object]]) -> tuple[list[Answer], float]:
    answers: list[Answer] = []
    threads = [threading.Thread(target=lambda own=body: answers.append(server.client().ask(own))) for body in bodies]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers, time.perf_counter() - start


def _row(kind: str, server: RunningServer, rounds: Sequence[tuple[list[Answer], float]], *, vectors: int) -> Row:
    answers = [answer for own, _ in rounds for answer in own]
    good = [answer.seconds for answer in answers if answer.status == 200]
    rates = [sum(answer.status == 200 for answer in own) / seconds for own, seconds in rounds]
    return {
        "kind": kind,
        "server": server.name,
        "requests_per_second": round(statistics.median(rates), 3),
        "vectors_per_second": round(vectors * statistics.median(rates), 3),
        "all_requests_per_second": [round(rate, 3) for rate in rates],
        "p50_seconds": round(float(np.percentile(good, 50)), 4) if good else None,
        "p99_seconds": round(float(np.percentile(good, 99)), 4) if good else None,
        "statuses": _statuses(answers),
    }


def _overhead_rows(server: RunningServer, model: PromptEmbedder, texts: Sequence[str], *, times: int = 60) -> list[Row]:
    """Measure sequential requests, interleaved with calls of the model in this process."""
    client, asked, encoded = server.client(), [], []
    for turn in range(times + 5):
        fresh = [f"{turn} {text}" for text in texts]
        answer = client.ask(server.body(fresh))
        start = time.perf_counter()
        model.encode(fresh)
        if turn >= 5:
            encoded.append(time.perf_counter() - start)
            asked.append(answer.seconds)
    client.close()
    return [
        {
            "kind": "one client",
            "server": server.name,
            "tokens": len(model.tokenizer(texts[0])["input_ids"]),
            "served_seconds": round(statistics.median(asked), 5),
            "offline_seconds": round(statistics.median(encoded), 5),
            "overhead_seconds": round(statistics.median(np.subtract(asked, encoded).tolist()), 5),
        }
    ]


def _soak_row(
    config: ServingConfig, server: RunningServer, model: PromptEmbedder, texts: Sequence[str], capacity: float
) -> Row:
    """Send requests at a multiple of the capacity, and compare each vector with that of the model in this process."""
    asked = INSTRUCTIONS[:4]
    expected = model.encode_instructions(texts, asked)
    place = {text: row for row, text in enumerate(texts)}
    everything = expected.reshape(-1, expected.shape[-1])
    lowest, mixed_up = [1.0], [0]

    def check(body: Mapping[str, Any], vectors: np.ndarray) -> str | None:
        text, instruction = str(body["input"][0]), str(body["instruction"][0])
        cosine = float(vectors[0] @ expected[asked.index(instruction), place[text]])
        lowest[0] = min(lowest[0], cosine)
        closest = int(np.argmax(everything @ vectors[0])) % len(texts)
        mixed_up[0] += closest != place[text]
        return None if cosine >= _MIN_COSINE else f"cosine {cosine:.5f}"

    drawn = random.Random(0)
    bodies: Iterator[dict[str, object]] = (
        server.body([drawn.choice(texts)], [drawn.choice(asked)]) for _ in itertools.count()
    )
    memory: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            memory.append(server.memory_bytes())

    watching = threading.Thread(target=watch)
    watching.start()
    rate = config.overload * capacity
    answers = open_loop(server.port, server.path, bodies, rate=rate, seconds=config.soak_seconds, check=check)
    done.set()
    watching.join()
    warm = int(len(memory) * _WARM_SHARE)
    early, late = max(memory[: warm + 1], default=1), max(memory[warm:], default=1)
    return {
        "kind": "overload",
        "server": server.name,
        "seconds": config.soak_seconds,
        "requests": len(answers),
        "rate": round(rate, 2),
        "statuses": _statuses(answers),
        "wrong_vectors": sum(answer.wrong is not None for answer in answers),
        "lowest_cosine": round(lowest[0], 6),
        "mixed_up": mixed_up[0],
        "p99_seconds": round(float(np.percentile([one.seconds for one in answers if one.status == 200] or [0], 99)), 3),
        "refused_p99_seconds": round(
            float(np.percentile([one.seconds for one in answers if one.status == 429] or [0], 99)), 4
        ),
        "rss_after_warmup": early,
        "rss_growth": round(late / early - 1, 4),
        "rss_by_minute": memory[::60],
    }


def _statuses(answers: Sequence[Answer]) -> dict[str, int]:
    return {str(status): count for status, count in sorted(Counter(answer.status for answer in answers).items())}
