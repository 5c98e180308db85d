"""Soak test of `encode`: vectors must stay the same and memory must not grow."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from benchmarks.faults.model import tiny_embedder
from benchmarks.faults.result import Campaign
from benchmarks.memory import memory_in_use
from promptembedder.data import load_docstring_corpus

__all__ = ["SoakSample", "grown_bytes", "soak", "soak_campaign", "soaked"]

_ALLOWED_BYTES = 16 << 20
_ALLOWED_SHARE = 0.02
_WARM_UP_SHARE = 0.1
_COMPARED = 64
_BATCH = 16
_INSTRUCTION = "Find the same thing"


@dataclass(frozen=True, kw_only=True)
class SoakSample:
    """Sample of a soak test.

    Attributes:
        seconds: Time since the start.
        resident_bytes: Memory of the process.
        texts: Number of texts embedded so far.
        wrong: Number of vectors so far that were not finite, not of length 1, or different from those of the start.
    """

    seconds: float
    resident_bytes: int
    texts: int
    wrong: int


def soak(
    *, seconds: float, every_s: float, seed: int, on_sample: Callable[[SoakSample], None] = lambda _: None
) -> dict[str, Any]:
    """Embed texts of all lengths under new and repeated instructions for a given time, in this process.

    The same texts are repeated every few batches: their vectors must equal those of the start bit for bit.

    Args:
        every_s: Seconds between samples.
    """
    model = tiny_embedder(seed=seed)
    words = [pair.positive for pair in load_docstring_corpus().test]
    draw = random.Random(seed)
    fixed = words[:_COMPARED]
    expected = model.encode(fixed, prompt=_INSTRUCTION, batch_size=_BATCH)
    samples: list[SoakSample] = []
    texts = wrong = batches = 0
    began = time.perf_counter()
    while (now := time.perf_counter() - began) < seconds or not samples:
        if not samples or now >= len(samples) * every_s:
            samples.append(
                SoakSample(seconds=round(now, 1), resident_bytes=memory_in_use("cpu"), texts=texts, wrong=wrong)
            )
            on_sample(samples[-1])
        if batches % 8 == 0:
            vectors = model.encode(fixed, prompt=_INSTRUCTION, batch_size=_BATCH)
            wrong += int((vectors != expected).any(axis=1).sum())
            texts += len(fixed)
        else:
            chosen = [" ".join(draw.choices(words, k=draw.randrange(4))) for _ in range(_BATCH)]
            vectors = model.encode(chosen, prompt=f"Find number {draw.randrange(100_000)}")
            lengths = np.linalg.norm(vectors, axis=1)
            wrong += int((~np.isfinite(lengths) | (abs(lengths - 1) > 1e-4)).sum())
            texts += _BATCH
        batches += 1
    samples.append(
        SoakSample(
            seconds=round(time.perf_counter() - began, 1),
            resident_bytes=memory_in_use("cpu"),
            texts=texts,
            wrong=wrong,
        )
    )
    on_sample(samples[-1])
    grown = grown_bytes(samples)
    level = max(sample.resident_bytes for sample in samples)
    return {
        "seconds": samples[-1].seconds,
        "texts": texts,
        "wrong": wrong,
        "grown_bytes": grown,
        "largest_bytes": level,
        "flat": grown <= max(_ALLOWED_BYTES, int(_ALLOWED_SHARE * level)),
        "samples": [asdict(sample) for sample in samples],
    }


def grown_bytes(samples: Sequence[SoakSample]) -> int:
    """Return the difference of the median memory of the last and the first third, after a tenth of warm-up."""
    warm = [sample for sample in samples if sample.seconds >= _WARM_UP_SHARE * samples[-1].seconds]
    third = max(len(warm) // 3, 1)
    first, last = ([sample.resident_bytes for sample in part] for part in (warm[:third], warm[-third:]))
    return int(median(last) - median(first))


def soaked(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Run `soak` as a campaign.

    Args:
        count: Duration in seconds.
        on_done: Called with the number of seconds so far.
    """
    every_s = max(count / 120, 0.5)
    result = soak(seconds=count, every_s=every_s, seed=seed, on_sample=lambda sample: on_done(int(sample.seconds)))
    return soak_campaign(result, seed=seed)


def soak_campaign(result: Mapping[str, Any], *, seed: int) -> Campaign:
    """Convert the result of `soak` to a campaign whose unit is texts. If memory grew, no text counts as survived."""
    megabyte = 1 << 20
    most, grown = (result[name] / megabyte for name in ("largest_bytes", "grown_bytes"))
    failures = [] if result["flat"] else [f"memory grew by {result['grown_bytes']} bytes"]
    failures += [f"{result['wrong']} vectors were wrong"] if result["wrong"] else []
    return Campaign(
        name="soak",
        tried=result["texts"],
        survived=result["texts"] - result["wrong"] if result["flat"] else 0,
        seconds=result["seconds"],
        seed=seed,
        notes=f"texts embedded by one process; its memory was {most:.0f} MiB at most and changed by {grown:+.1f} MiB "
        "from the first third to the last; vectors of the beginning came again bit for bit",
        failures=tuple(failures),
    )
