"""Request queue with dynamic batching: one thread computes batches of texts from many requests."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from promptembedder.backbone import TokenIds
from promptembedder.errors import ConfigError, WeightsError
from promptembedder.server.batch_embedder import InstructionKey, next_batch
from promptembedder.server.schemas import ApiError
from promptembedder.types import Float

__all__ = ["BatchReport", "EmbeddingEngine"]

logger = logging.getLogger(__name__)

Compute = Callable[
    [Mapping[TokenIds, Sequence[InstructionKey]]],
    dict[tuple[TokenIds, InstructionKey], Float[np.ndarray, " dim"]],
]

_RATE_DECAY = 0.9  # weight of the previous estimate in the moving average of tokens per second


@dataclass(frozen=True, kw_only=True)
class BatchReport:
    """Statistics of one computed batch.

    Attributes:
        texts: Number of distinct texts.
        vectors: Number of vectors, equal to the number of texts if each has one instruction.
        tokens: Number of tokens of the texts.
        padding: Number of padding tokens.
        compute_seconds: Duration of the computation.
        queue_seconds: Time that each text spent in the queue.
    """

    texts: int
    vectors: int
    tokens: int
    padding: int
    compute_seconds: float
    queue_seconds: Sequence[float]


@dataclass(eq=False)
class _Job:
    """The texts of one request, each to be embedded under all instructions of the request."""

    rows: Sequence[TokenIds]
    keys: Sequence[InstructionKey]
    vectors: Float[np.ndarray, "instructions texts dim"]
    future: "asyncio.Future[None]"
    since: float = field(default_factory=time.monotonic)
    missing: int = 0

    def complete(self, error: Exception | None = None) -> None:
        """Resolve the future of the request, from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed: no request awaits the future
            self.future.get_loop().call_soon_threadsafe(self._resolve, error)

    def _resolve(self, error: Exception | None) -> None:
        if self.future.done():
            return
        if error is None:
            self.future.set_result(None)
        else:
            self.future.set_exception(error)


@dataclass(frozen=True, eq=False)
class _Text:
    """A queued text."""

    job: _Job
    index: int

    @property
    def row(self) -> TokenIds:
        return self.job.rows[self.index]


class EmbeddingEngine:
    """Computes vectors for concurrent requests, batch by batch. The text that has waited longest goes first."""

    def __init__(
        self,
        compute: Compute,
        *,
        dim: int,
        max_batch_tokens: int,
        max_waiting: int,
        observe: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        """Start the computing thread.

        Args:
            compute: Maps texts, each with its instructions, to vectors. Called by the computing thread only.
            dim: Dimension of the vectors.
            max_batch_tokens: Maximum number of tokens of a batch, padding included.
            max_waiting: Maximum number of vectors that are queued or being computed.
            observe: Called after each batch, in the computing thread.
        """
        self._embed, self._dim, self._observe = compute, dim, observe
        self._max_batch_tokens, self._max_waiting = max_batch_tokens, max_waiting
        self._changed = threading.Condition()
        self._queue: list[_Text] = []
        self._pending = 0  # vectors that are queued or being computed
        self._pending_tokens = 0
        self._tokens_per_second: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="compute", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of vectors that are queued or being computed."""
        return self._pending

    @property
    def alive(self) -> bool:
        """True while the computing thread runs."""
        return self._thread.is_alive()

    def expected_wait_s(self) -> float:
        """Estimate the time to compute all pending texts from the throughput of recent batches. 0 without a batch."""
        return self._pending_tokens / self._tokens_per_second if self._tokens_per_second else 0.0

    async def embed(
        self, rows: Sequence[TokenIds], keys: Sequence[InstructionKey], *, deadline_s: float
    ) -> Float[np.ndarray, "instructions texts dim"]:
        """Compute the vectors of the texts under each instruction. Cancellation removes the queued texts.

        Raises:
            ApiError: 429 if the queue is full, 504 if the request exceeds `deadline_s`, 422 if an instruction cannot be
                used, 500 if a vector is not finite or the computation fails.
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
                504,
                "deadline",
                f"the vectors were not computed within {deadline_s:g} s. Send fewer texts, or send them later.",
            ) from None
        finally:
            self._abandon(job)
        return job.vectors

    def stop(self) -> None:
        """Compute the queued texts and end the thread."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    def _submit(self, job: _Job, deadline_s: float) -> None:
        job.missing = requested = len(job.rows) * len(job.keys)
        with self._changed:
            wait_s = self.expected_wait_s()
            if self._pending + requested > self._max_waiting:
                raise ApiError(
                    429,
                    "overloaded",
                    f"the queue is full: {self._pending} vectors are pending, {requested} more exceed the maximum of "
                    f"{self._max_waiting}. Try again after Retry-After seconds.",
                    retry_after_s=wait_s,
                )
            if wait_s > deadline_s:
                raise ApiError(
                    429,
                    "overloaded",
                    f"the queue takes {wait_s:.0f} s, longer than the deadline of {deadline_s:g} s. "
                    "Try again after Retry-After seconds.",
                    retry_after_s=wait_s - deadline_s,
                )
            self._pending += requested
            self._queue += [_Text(job, index) for index in range(len(job.rows))]
            self._pending_tokens += sum(map(len, job.rows))
            self._changed.notify()

    def _abandon(self, job: _Job) -> None:
        """Remove the job's texts from the queue, if any are left."""
        with self._changed:
            if job.missing:
                removed = [text for text in self._queue if text.job is job]
                self._queue = [text for text in self._queue if text.job is not job]
                self._release(removed)

    def _release(self, texts: Sequence[_Text]) -> None:
        for text in texts:
            self._pending -= len(text.job.keys)
            self._pending_tokens -= len(text.row)
            text.job.missing -= len(text.job.keys)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                texts = self._next()
            self._compute(texts)

    def _next(self) -> list[_Text]:
        """Remove the next batch from the queue, with all queued duplicates of its texts."""
        distinct = list(dict.fromkeys(text.row for text in self._queue))
        indices = next_batch([len(row) for row in distinct], max_tokens=self._max_batch_tokens)
        rows = {distinct[index] for index in indices}
        batch = [text for text in self._queue if text.row in rows]
        self._queue = [text for text in self._queue if text.row not in rows]
        return batch

    def _compute(self, texts: Sequence[_Text]) -> None:
        start = time.monotonic()
        jobs = list(dict.fromkeys(text.job for text in texts))
        errors: dict[_Job, Exception] = {}
        try:
            self._fill(texts)
        except Exception as error:  # any exception: the thread must survive and every request needs a response
            # retry job by job, so that one request's text or instruction does not fail the other requests
            errors = {jobs[0]: error} if len(jobs) == 1 else self._fill_each(jobs, texts)
        seconds = time.monotonic() - start
        with self._changed:
            self._release(texts)
            done = [job for job in jobs if job.missing == 0]
        lengths = [len(row) for row in dict.fromkeys(text.row for text in texts)]
        if not errors:
            rate = sum(lengths) / max(seconds, 1e-6)
            old = self._tokens_per_second
            self._tokens_per_second = rate if old is None else _RATE_DECAY * old + (1 - _RATE_DECAY) * rate
        for job in jobs:
            if job in errors:
                job.complete(_to_api_error(errors[job]))
            elif job in done:
                job.complete()
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

    def _fill_each(self, jobs: Sequence[_Job], texts: Sequence[_Text]) -> dict[_Job, Exception]:
        """Compute job by job, and return the errors of those that fail."""
        errors: dict[_Job, Exception] = {}
        for job in jobs:
            try:
                self._fill([text for text in texts if text.job is job])
            except Exception as error:  # as above
                errors[job] = error
        return errors

    def _fill(self, texts: Sequence[_Text]) -> None:
        """Compute the vectors of these texts and store them in their jobs."""
        requested: dict[TokenIds, dict[InstructionKey, None]] = {}
        for text in texts:
            requested.setdefault(text.row, {}).update(dict.fromkeys(text.job.keys))
        vectors = self._embed({row: list(keys) for row, keys in requested.items()})
        for text in texts:
            for index, key in enumerate(text.job.keys):
                text.job.vectors[index, text.index] = vectors[text.row, key]


def _to_api_error(error: Exception) -> ApiError:
    """Convert an exception to an API error. Only the message of a ConfigError is safe to send to the client."""
    if isinstance(error, ConfigError):
        return ApiError(422, "instruction_not_usable", str(error), param="instruction")
    if isinstance(error, WeightsError):
        logger.error("a vector is not finite")
        return ApiError(
            500,
            "not_finite",
            "a vector is not finite. Load the backbones with dtype float32, or check the model's weights.",
        )
    logger.error("the computation failed", exc_info=error)
    return ApiError(500, "computation_failed", "the computation failed. See the server's log for the cause.")
