"""Speed benchmark: encoding against the bare frozen LLM, sentence-transformers and the machine's own rates."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.efficiency.methods import INSTRUCTION, default_prompter, prepare_backbone
from benchmarks.journal import Journal
from benchmarks.speed.cases import OURS, Case, build_embedder, calls_of, texts_of
from benchmarks.speed.machine_rates import copy_rate, forward_flops, matmul_rate, require_device, seconds_of
from promptembedder.backbone import resolve_dtype
from promptembedder.errors import ConfigError
from promptembedder.model import PromptEmbedder
from promptembedder.storage import describe_machine, versions
from promptembedder.training import OptimConfig

__all__ = ["SpeedConfig", "run_speed", "slowest_profile"]

JOURNAL_NAME = "speed.journal.jsonl"
_PROFILED_ROWS = 25

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """Configuration of the speed benchmark.

    Attributes:
        prompter: Name of the prompter. If None, `default_prompter(reader)` is used.
        lengths: Text lengths in tokens in the length comparison.
        length: Text length in tokens in the other comparisons.
        texts: Numbers of texts that are compared.
        instructions: Numbers of instructions that are compared.
        soft_tokens: Numbers of soft tokens that are compared.
        batch: Number of pairs in a training step.
        tokens: Approximate number of tokens of all texts of a case.
        dtype: Number format of the reader. See `BackboneConfig`.
        repeats: Number of timings of each method. The methods alternate.
    """

    reader: str = "smollm2-135m"
    prompter: str | None = None
    lengths: tuple[int, ...] = (16, 64, 128, 512, 2048)
    length: int = 128
    texts: tuple[int, ...] = (1, 8, 32)
    instructions: tuple[int, ...] = (1, 2, 4, 8, 16)
    soft_tokens: tuple[int, ...] = (1, 5, 10, 20)
    batch: int = OptimConfig.batch_size
    tokens: int = 2048
    device: str = "cpu"
    dtype: str = "auto"
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("lengths", "texts", "instructions", "soft_tokens"):
            numbers = getattr(self, name)
            if not numbers or min(numbers) < 1:
                raise ConfigError(f"{name} must be numbers from 1 on, got {list(numbers)}.")
        if min(*self.lengths, self.length) < 8:
            raise ConfigError(f"lengths must be at least 8 tokens, got {min(*self.lengths, self.length)}.")
        for name, least in (("tokens", 1), ("repeats", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        require_device(self.device)
        resolve_dtype(self.dtype)

    @property
    def number_format(self) -> str:
        """Return the number format that `dtype` resolves to on this device."""
        return str(resolve_dtype(self.dtype, device=self.device)).removeprefix("torch.")

    def command(self) -> str:
        """Return the command that repeats this measurement."""
        words = ["python -m benchmarks speed", f"--reader {self.reader}"]
        words += [] if self.prompter is None else [f"--prompter {self.prompter}"]
        for name in ("lengths", "texts", "instructions", "soft_tokens"):
            words.append(f"--{name.replace('_', '-')} {','.join(map(str, getattr(self, name)))}")
        words += [
            f"--length {self.length}",
            f"--batch {self.batch}",
            f"--tokens {self.tokens}",
            f"--device {self.device}",
        ]
        return " ".join([*words, f"--dtype {self.number_format}", f"--repeats {self.repeats}"])

    def cases(self) -> list[Case]:
        """Return all timed cases."""
        length, some = self.length, max(self.tokens // self.length, 1)
        top = max((each for each in self.lengths if each <= 512), default=length)
        found = [Case(kind="length", length=each, texts=max(self.tokens // each, 1)) for each in self.lengths]
        found += [Case(kind="mixed", length=top, texts=max(4 * self.tokens // top, 2))]
        found += [Case(kind="texts", length=length, texts=each) for each in self.texts]
        found += [Case(kind="instructions", length=length, texts=some, instructions=each) for each in self.instructions]
        found += [Case(kind="soft_tokens", length=length, texts=some, soft_tokens=each) for each in self.soft_tokens]
        found += [Case(kind="early_exit_fraction", length=length, texts=some)]
        return [*found, Case(kind="epoch", length=length, texts=2 * self.batch)]


def run_speed(
    config: SpeedConfig,
    folder: Path,
    *,
    overwrite: bool = False,
    on_case: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time the cases that are missing from `folder`'s journal, so that an interrupted run resumes.

    Return the content of `speed.json`. Each row contains the seconds of all repeats. The n-th repeats of all methods
    follow each other immediately.

    Raises:
        BackboneError: If the reader or the prompter cannot be found or loaded.
        DataError: If the journal is from another machine or other versions.
    """
    prompter = config.prompter or default_prompter(config.reader)
    for name in {config.reader, prompter}:
        prepare_backbone(name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    if overwrite:
        path.unlink(missing_ok=True)
    machine, made_with = describe_machine(), versions()
    run = _Run(config, prompter, Journal(path, machine=machine, versions=made_with))
    rates = run.rates()
    rows = [row for case in config.cases() for row in _measure_case(run, case, on_case)]
    return {
        "command": config.command(),
        "machine": machine,
        "versions": made_with,
        "settings": {**dataclasses.asdict(config), "prompter": prompter, "dtype": config.number_format},
        "rates": rates,
        "rows": rows,
    }


def slowest_profile(config: SpeedConfig, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return torch's profile of the case that encodes the fewest tokens a second."""
    slow = min((row for row in rows if row["method"] == OURS and row["kind"] == "length"), key=_tokens_a_second)
    case = Case(kind="length", length=slow["length"], texts=slow["texts"])
    model = _model(config, config.prompter or default_prompter(config.reader), case)
    texts = texts_of(case, model.encoder.reader)
    model.encode(texts, prompt=INSTRUCTION)
    activities = [ProfilerActivity.CUDA] if config.device == "cuda" else []
    with profile(activities=[ProfilerActivity.CPU, *activities]) as profiled:
        model.encode(texts, prompt=INSTRUCTION)
    order = "self_cuda_time_total" if config.device == "cuda" else "self_cpu_time_total"
    table: str = profiled.key_averages().table(sort_by=order, row_limit=_PROFILED_ROWS, max_name_column_width=48)
    return f"{case.texts} texts of {case.length} tokens, {config.reader}, {config.number_format}\n{table}"


class _Run:
    """Pass over all cases that skips those in the journal."""

    def __init__(self, config: SpeedConfig, prompter: str, journal: Journal) -> None:
        self.config, self.prompter, self.journal = config, prompter, journal
        self._model: tuple[Case, PromptEmbedder] | None = None

    def rates(self) -> dict[str, Any]:
        """Return the machine's peak rates, and the operations that one text requires."""
        config, key = self.config, self._key("rates", None)
        found = self.journal.get(key)
        if found is None:
            rows = max(config.tokens, config.length)
            decoder = self.model(Case(kind="length", length=config.length, texts=1)).encoder.reader.decoder
            device = torch.device(config.device)
            found = {
                "matmul_flops_per_second": matmul_rate(decoder, rows=rows, repeats=config.repeats),
                "copied_bytes_per_second": copy_rate(device, repeats=config.repeats),
                "forward_flops": {
                    str(each): forward_flops(decoder, texts=1, length=each)
                    for each in sorted({*config.lengths, config.length})
                },
            }
            self.journal.add(key, found)
        return found

    def measure(self, case: Case) -> list[Row]:
        """Return a row for each method of the case."""
        key = self._key("case", case)
        held = self.journal.get(key)
        if held is None:
            held = {"rows": self._timed(case)}
            self.journal.add(key, held)
        return [dict(row) for row in held["rows"]]

    def model(self, case: Case) -> PromptEmbedder:
        """Return the case's model. The last model is cached, because the next case often uses the same one."""
        same = dataclasses.replace(case, kind="", texts=0, instructions=0)
        if self._model is None or self._model[0] != same or case.kind == "epoch":
            self._model = None  # free the old model first
            self._model = (same, _model(self.config, self.prompter, case))
        return self._model[1]

    def _timed(self, case: Case) -> list[Row]:
        model = self.model(case)
        device = torch.device(self.config.device)
        with calls_of(case, model) as calls:
            for call in calls.values():
                call()
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
            for turn in range(self.config.repeats):
                for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:  # a steady drift cancels
                    times[name].append(seconds_of(calls[name], device=device))
        rows = model.encoder.reader.tokenizer.tokenize(
            texts_of(case, model.encoder.reader), max_length=model.max_seq_length
        )
        return [
            {
                "kind": case.kind,
                "method": name,
                "length": case.length,
                "texts": case.texts,
                "instructions": case.instructions,
                "soft_tokens": case.soft_tokens,
                "tokens": int(rows.mask.sum()),
                "seconds": statistics.median(seconds for seconds, _ in times[name]),
                "cpu_seconds": statistics.median(cpu for _, cpu in times[name]),
                "all_seconds": [seconds for seconds, _ in times[name]],
                "all_cpu_seconds": [cpu for _, cpu in times[name]],
            }
            for name in calls
        ]

    def _key(self, what: str, case: Case | None) -> dict[str, Any]:
        config = self.config
        same = {"reader": config.reader, "prompter": self.prompter, "device": config.device}
        own = {} if case is None else dataclasses.asdict(case)
        rates = {"lengths": config.lengths, "tokens": config.tokens} if case is None else {}
        return {**same, "dtype": config.number_format, "repeats": config.repeats, "what": what, **own, **rates}


def _measure_case(run: _Run, case: Case, on_case: Callable[[str], None]) -> list[Row]:
    on_case(f"{case.kind}: {case.texts} texts of {case.length} tokens")
    return run.measure(case)


def _model(config: SpeedConfig, prompter: str, case: Case) -> PromptEmbedder:
    return build_embedder(
        case, reader=config.reader, prompter=prompter, device=config.device, dtype=config.number_format
    )


def _tokens_a_second(row: Mapping[str, Any]) -> float:
    return float(row["tokens"] / row["seconds"])
