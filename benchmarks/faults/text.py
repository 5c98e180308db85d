"""Hostile texts and instructions for `encode`: each must give a finite unit vector that is independent of the batch."""

import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.faults.hostile_text import hostile_text
from benchmarks.faults.model import tiny_embedder
from benchmarks.faults.result import Campaign
from promptembedder.errors import ConfigError, DataError
from promptembedder.model import PromptEmbedder
from promptembedder.types import Float

__all__ = ["TEXTS", "hostile_instructions", "hostile_texts", "text_faults"]

_BATCH = 8
_PLAIN = "a plain text beside the others"
_INSTRUCTION = "Find the same thing"
_TOLERANCE = 2e-5  # float32 with another order of summation
_NO_TEXTS: tuple[object, ...] = (None, 3, 0.5, b"bytes", ["a"], ("a", "b"), {"text": "a"}, object())


def hostile_texts(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Encode texts in batches, in another order, and alone.

    Every tenth batch contains a value that is not a text and must be refused as a whole with a `DataError`.
    """
    model = tiny_embedder()
    plain = model.encode([_PLAIN], prompt=_INSTRUCTION)[0]
    faults: Counter[str] = Counter()
    longest = slowest = 0.0
    began, tried, refused = time.perf_counter(), 0, 0
    with _quiet():
        for batch in range(-(-count // _BATCH)):
            draw = random.Random(seed * 1_000_003 + batch)
            texts = [hostile_text(draw) for _ in range(min(_BATCH, count - tried))]
            start = time.perf_counter()
            faults.update(f"{fault} (batch {batch})" for fault in text_faults(model, texts, plain, draw))
            slowest, longest = max(slowest, time.perf_counter() - start), max([longest, *map(len, texts)])
            if batch % 10 == 9:
                fault = _refusal_fault(model, [*texts[:2], draw.choice(_NO_TEXTS)])
                faults.update([] if fault is None else [f"{fault} (batch {batch})"])
                refused += fault is None
            tried += len(texts)
            on_done(tried)
    return Campaign(
        name="texts",
        tried=tried,
        survived=max(tried - sum(faults.values()), 0),
        seconds=round(time.perf_counter() - began, 1),
        seed=seed,
        notes=f"longest {longest:.0f} characters, slowest batch {slowest:.1f} s, {refused} batches refused for no text",
        failures=tuple(faults)[:50],
    )


def hostile_instructions(*, count: int, seed: int, on_done: Callable[[int], None] = lambda _: None) -> Campaign:
    """Encode with each text as the instruction. Expect unit vectors, or a `ConfigError` if the text is too long."""
    model = tiny_embedder()
    faults: Counter[str] = Counter()
    began, refused = time.perf_counter(), 0
    with _quiet():
        for place in range(count):
            instruction = hostile_text(random.Random(seed * 1_000_003 + place))
            try:
                vectors = model.encode([_PLAIN, "another"], prompt=instruction)
                faults.update(f"{fault} (instruction {place})" for fault in _not_unit(vectors))
            except (ConfigError, DataError):
                refused += 1
            except Exception as error:  # recorded as a failure; the campaign continues
                faults[f"{type(error).__name__}: {str(error)[:100]} (instruction {place})"] += 1
            on_done(place + 1)
    return Campaign(
        name="instructions",
        tried=count,
        survived=max(count - sum(faults.values()), 0),
        seconds=round(time.perf_counter() - began, 1),
        seed=seed,
        notes=f"{refused} refused",
        failures=tuple(faults)[:50],
    )


def text_faults(
    model: PromptEmbedder, texts: Sequence[str], plain: Float[np.ndarray, " dim"], draw: random.Random
) -> list[str]:
    """Return the faults of these texts' vectors: in one batch, in another order, and alone.

    Args:
        plain: Vector of a plain text, which must not change next to these texts.
    """
    try:
        together = model.encode([*texts, _PLAIN], prompt=_INSTRUCTION)
        order = draw.sample(range(len(texts)), len(texts))
        mixed = model.encode([texts[place] for place in order], prompt=_INSTRUCTION, batch_size=3)
        alone = [model.encode([text], prompt=_INSTRUCTION)[0] for text in texts]
    except Exception as error:  # recorded as a failure; the campaign continues
        return [f"{type(error).__name__}: {str(error)[:100]}"]
    faults = _not_unit(together)
    if not np.allclose(together[-1], plain, rtol=0, atol=_TOLERANCE):
        faults.append("a plain text has another vector beside these")
    for place, text in enumerate(texts):
        if not np.allclose(together[place], alone[place], rtol=0, atol=_TOLERANCE):
            faults.append(f"another vector alone: {text[:20]!a}")
    if not np.allclose(mixed, together[:-1][order], rtol=0, atol=_TOLERANCE):
        faults.append("other vectors in another order")
    return faults


def _not_unit(vectors: Float[np.ndarray, "texts dim"]) -> list[str]:
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    wrong = ~(np.abs(lengths - 1) < 1e-4)  # NaN is wrong, too
    return [f"vector of length {length}" for length in lengths[wrong]]


def _refusal_fault(model: PromptEmbedder, texts: list[object]) -> str | None:
    try:
        model.encode(texts, prompt=_INSTRUCTION)
    except DataError:
        return None
    except Exception as error:  # recorded as a failure; the campaign continues
        return f"{type(texts[-1]).__name__} among texts: {type(error).__name__}: {str(error)[:80]}"
    return f"{type(texts[-1]).__name__} among texts: no error"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress warnings of truncated texts, because most texts are truncated."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


TEXTS: dict[str, Callable[..., Campaign]] = {"texts": hostile_texts, "instructions": hostile_instructions}
