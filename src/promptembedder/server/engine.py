"""One thread that computes, and what waits for it: texts of many requests are read together."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from promptembedder.errors import ConfigError
from promptembedder.backbone import TokenRow
from promptembedder.server.batch_embedder import next_batch
from promptembedder.server.batch_embedder import InstructionKey
from promptembedder.server.errors import ApiError, OverloadedError
from promptembedder.types import Float

__all__ = ["BatchReport", "EmbeddingEngine"]

logger = logging.getLogger(__name__)

Compute = Callable[
    [Mapping[TokenRow, Sequence[InstructionKey]]],
    dict[tuple[TokenRow, InstructionKey], Float[np.ndarray, " dim"]],
]

_RATE_MEMORY = 0.9  # share of the old estimate that a batch leaves in the new one


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """What was computed at once.

    Attributes:
        texts: Distinct ones.
        vectors: As many as texts, where each has one instruction.
        tokens: Of the texts.
        padding: Tokens beside them.
        queue_seconds: How long each text waited.
    """

    texts: int
    vectors: int
    tokens: int
    padding: int
    compute_seconds: float
    queue_seconds: Sequence[float]


@dataclass(eq=False)
class _Job:
    """The texts of one request, each under all of its instructions."""

    rows: Sequence[TokenRow]
    keys: Sequence[InstructionKey]
    vectors: Float[np.ndarray, "instructions texts dim"]
    future: "asyncio.Future[None]"
    since: float = field(default_factory=time.monotonic)
    missing: int = 0

    def answer(self, error: Exception | None = None) -> None:
        """Wake the request, from any thread."""
        with contextlib.suppress(RuntimeError):  # its loop has ended, so nobody waits
            self.future.get_loop().call_soon_threadsafe(self._settle, error)

    def _settle(self, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Text:
    """A text that waits."""

    job: _Job
    place: int

    @property
    def row(self) -> TokenRow:
        return self.job.rows[self.place]


class EmbeddingEngine:
    """Computes vectors for many requests, one batch after the other, the text that waits longest first."""

    def __init__(
        self,
        compute: Compute,
        *,
        dim: int,
        max_batch_tokens: int,
        max_waiting: int,
        observe: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        """Start the thread.

        Args:
            compute: From texts and the instructions that are wanted of each to all these vectors; called by the one
                thread alone.
            dim: Of the vectors.
            max_batch_tokens: Of the texts of a batch, padding included.
            max_waiting: Vectors that may wait or be computed at once.
            observe: Called after each batch, in the computing thread.
        """
        self._vectors_of, self._dim, self._observe = compute, dim, observe
        self._max_batch_tokens, self._max_waiting = max_batch_tokens, max_waiting
        self._changed = threading.Condition()
        self._waiting: list[_Text] = []
        self._taken = 0  # vectors that wait or are computed
        self._waiting_tokens = 0
        self._tokens_per_second: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Vectors that wait or are computed."""
        return self._taken

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def expected_wait_s(self) -> float:
        """How long what waits now will take, by the rate of the last batches; 0 while there is none."""
        return self._waiting_tokens / self._tokens_per_second if self._tokens_per_second else 0.0

    async def embed(
        self, rows: Sequence[TokenRow], keys: Sequence[InstructionKey], *, deadline_s: float
    ) -> Float[np.ndarray, "instructions texts dim"]:
        """Vectors of the texts under each instruction. A caller that is cancelled frees what still waits.

        Raises:
            ApiError: 429: too much waits already; 504: it took longer than `deadline_s`; 422: an instruction cannot be
                used; 500: a vector is not finite, or the computation failed.
        """
        job = _Job(
            rows=rows,
            keys=keys,
            vectors=np.empty((len(keys), len(rows), self._dim), dtype=np.float32),
            future=asyncio.get_running_loop().create_future(),
        )
        self._submit(job, deadline_s)
        try:
            async with asyncio.timeout(deadline_s):
                await job.future
        except TimeoutError:
            raise ApiError(
                504, "deadline", f"no vectors within {deadline_s:g} s. Send less at once, or later."
            ) from None
        finally:
            self._abandon(job)
        return job.vectors

    def stop(self) -> None:
        """Compute what waits and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, job: _Job, deadline_s: float) -> None:
        job.missing = asked = len(job.rows) * len(job.keys)
        with self._changed:
            wait_s = self.expected_wait_s()
            if self._taken + asked > self._max_waiting:
                raise OverloadedError(
                    f"{self._taken} vectors wait already, {asked} more are above the {self._max_waiting} that may.",
                    retry_after_s=wait_s,
                )
            if wait_s > deadline_s:
                raise OverloadedError(
                    f"what waits already takes {wait_s:.0f} s, longer than the {deadline_s:g} s of a request.",
                    retry_after_s=wait_s - deadline_s,
                )
            self._taken += asked
            self._waiting += [_Text(job, place) for place in range(len(job.rows))]
            self._waiting_tokens += sum(map(len, job.rows))
            self._changed.notify()

    def _abandon(self, job: _Job) -> None:
        """Forget what of the job still waits; nothing, if it was answered."""
        with self._changed:
            if job.missing:
                gone = [text for text in self._waiting if text.job is job]
                self._waiting = [text for text in self._waiting if text.job is not job]
                self._freed(gone)

    def _freed(self, texts: Sequence[_Text]) -> None:
        for text in texts:
            self._taken -= len(text.job.keys)
            self._waiting_tokens -= len(text.row)
            text.job.missing -= len(text.job.keys)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                if not self._waiting:
                    return
                texts = self._next()
            self._compute(texts)

    def _next(self) -> list[_Text]:
        """Take the next batch out of what waits: whoever asks for one of its texts gets it now."""
        distinct = list(dict.fromkeys(text.row for text in self._waiting))
        chosen = next_batch([len(row) for row in distinct], max_tokens=self._max_batch_tokens)
        rows = {distinct[place] for place in chosen}
        batch = [text for text in self._waiting if text.row in rows]
        self._waiting = [text for text in self._waiting if text.row not in rows]
        return batch

    def _compute(self, texts: Sequence[_Text]) -> None:
        start = time.monotonic()
        jobs = list(dict.fromkeys(text.job for text in texts))
        errors: dict[_Job, Exception] = {}
        try:
            self._fill(texts)
        except Exception as error:  # whatever it is, the thread lives on and the requests are answered
            # one request's text or instruction must not fail the others
            for job in jobs:
                errors |= self._filled_alone(job, texts) if len(jobs) > 1 else {job: error}
        seconds = time.monotonic() - start
        with self._changed:
            self._freed(texts)
            done = [job for job in jobs if job.missing == 0]
        lengths = [len(row) for row in dict.fromkeys(text.row for text in texts)]
        if not errors:
            rate = sum(lengths) / max(seconds, 1e-6)
            old = self._tokens_per_second
            self._tokens_per_second = rate if old is None else _RATE_MEMORY * old + (1 - _RATE_MEMORY) * rate
        for job in jobs:
            if job in errors:
                job.answer(_told(errors[job]))
            elif job in done:
                job.answer()
        self._observe(
            BatchReport(
                texts=len(lengths),
                vectors=sum(len(text.job.keys) for text in texts),
                tokens=sum(lengths),
                padding=len(lengths) * max(lengths) - sum(lengths),
                compute_seconds=seconds,
                queue_seconds=[start - text.job.since for text in texts],
            )
        )

    def _filled_alone(self, job: _Job, texts: Sequence[_Text]) -> dict[_Job, Exception]:
        try:
            self._fill([text for text in texts if text.job is job])
        except Exception as error:  # as above
            return {job: error}
        return {}

    def _fill(self, texts: Sequence[_Text]) -> None:
        """Compute the vectors of these texts and put them into their jobs."""
        wanted: dict[TokenRow, dict[InstructionKey, None]] = {}
        for text in texts:
            wanted.setdefault(text.row, {}).update(dict.fromkeys(text.job.keys))
        vectors = self._vectors_of({row: list(keys) for row, keys in wanted.items()})
        for text in texts:
            for place, key in enumerate(text.job.keys):
                text.job.vectors[place, text.place] = vectors[text.row, key]


def _told(error: Exception) -> ApiError:
    """What the client is told of an error; never the text of one that we did not write."""
    if isinstance(error, ConfigError):
        return ApiError(422, "instruction_not_usable", str(error), param="instruction")
    if isinstance(error, ValueError):
        logger.error("a vector is not finite")
        return ApiError(500, "not_finite", "the vector is not finite: the model's weights or numbers are at fault.")
    logger.error("the computation failed", exc_info=error)
    return ApiError(500, "computation_failed", "the computation failed; the server's log says why.")
