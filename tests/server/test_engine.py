"""Laws of the engine: every request gets its own vectors, and what cannot be computed is refused in time."""

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from promptembedder.backbone import TokenIds
from promptembedder.errors import ConfigError, WeightsError
from promptembedder.server.batch_embedder import InstructionKey
from promptembedder.server.engine import BatchReport, EmbeddingEngine
from promptembedder.server.schemas import ApiError

KEY = InstructionKey("", "find")
EmbedRequest = Mapping[TokenIds, Sequence[InstructionKey]]


class Arithmetic:
    """Stands where the model would: a vector that tells its text and instruction; fails and waits where told to.

    The engine's own laws are about requests, not about vectors; those have tests with real models.
    """

    def __init__(self) -> None:
        self.batches: list[EmbedRequest] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.errors: dict[TokenIds, Exception] = {}

    def vectors(self, wanted: EmbedRequest) -> dict[tuple[TokenIds, InstructionKey], np.ndarray]:
        self.may_go.wait(10)
        self.batches.append(wanted)
        for row, error in self.errors.items():
            if row in wanted:
                raise error
        return {(row, key): self.vector(row, key) for row, keys in wanted.items() for key in keys}

    @staticmethod
    def vector(row: TokenIds, key: InstructionKey) -> np.ndarray:
        return np.array([sum(row), len(row), hash(key) % 997], dtype=np.float32)


@pytest.fixture
def arithmetic() -> Arithmetic:
    return Arithmetic()


@pytest.fixture
def new_engine(arithmetic: Arithmetic) -> Callable[..., EmbeddingEngine]:
    def made(**changes: object) -> EmbeddingEngine:
        config = {"dim": 3, "max_batch_tokens": 100, "max_waiting": 1000, **changes}
        return EmbeddingEngine(arithmetic.vectors, **config)  # type: ignore[arg-type]

    return made


def rows(*lengths: int) -> list[TokenIds]:
    return [tuple(range(length * 7, length * 8)) for length in lengths]


def test_many_requests_at_once_get_their_own_vectors(
    new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic
) -> None:
    reports: list[BatchReport] = []
    engine = new_engine(observe=reports.append)
    generator = np.random.default_rng(0)
    asked = [
        (
            rows(*generator.integers(1, 60, size=generator.integers(1, 9))),
            [InstructionKey(f"t{n % 3}", f"i{one}") for one in range(generator.integers(1, 4))],
        )
        for n in range(60)
    ]

    async def all_at_once() -> list[np.ndarray]:
        return await asyncio.gather(*(engine.embed(own, keys, deadline_s=20) for own, keys in asked))

    for (own, keys), vectors in zip(asked, asyncio.run(all_at_once()), strict=True):
        expected = [[Arithmetic.vector(row, key) for row in own] for key in keys]
        np.testing.assert_array_equal(vectors, np.array(expected))
    assert engine.waiting == 0
    engine.stop()
    assert sum(report.texts for report in reports) == sum(map(len, arithmetic.batches))
    # alike texts of different requests were read together
    assert sum(map(len, arithmetic.batches)) < sum(len(own) for own, _ in asked)


def test_equal_texts_of_concurrent_requests_are_prefilled_once(
    new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic
) -> None:
    engine, texts = new_engine(), rows(5, 6)
    arithmetic.may_go.clear()

    async def eight() -> None:
        first = asyncio.create_task(engine.embed(rows(50), [KEY], deadline_s=20))  # keeps the thread busy
        await asyncio.sleep(0.05)
        others = [
            asyncio.create_task(engine.embed(texts, [InstructionKey("", f"i{n}")], deadline_s=20)) for n in range(8)
        ]
        await asyncio.sleep(0.05)
        arithmetic.may_go.set()
        await asyncio.gather(first, *others)

    asyncio.run(eight())
    engine.stop()
    assert [sorted(map(len, batch)) for batch in arithmetic.batches] == [[50], [5, 6]]
    assert all(len(keys) == 8 for keys in arithmetic.batches[1].values())


def test_full_queue_returns_429_with_retry_after(
    new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic
) -> None:
    engine = new_engine(max_waiting=4)
    arithmetic.may_go.clear()

    async def too_much() -> None:
        held = asyncio.create_task(engine.embed(rows(1, 2, 3), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as refused:
            await engine.embed(rows(4, 5), [KEY], deadline_s=20)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1
        last = asyncio.create_task(engine.embed(rows(6), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        arithmetic.may_go.set()
        await asyncio.gather(held, last)
        assert engine.waiting == 0
        await engine.embed(rows(4, 5, 6, 7), [KEY], deadline_s=20)

    asyncio.run(too_much())
    engine.stop()


def test_expired_deadline_returns_504_and_frees_the_queue(
    new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic
) -> None:
    engine = new_engine()
    arithmetic.may_go.clear()

    async def late() -> None:
        held = asyncio.create_task(engine.embed(rows(90), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        with pytest.raises(ApiError) as refused:
            await engine.embed(rows(1, 2, 3), [KEY], deadline_s=0.05)
        assert refused.value.status == 504
        assert engine.waiting == 1
        arithmetic.may_go.set()
        await held

    asyncio.run(late())
    engine.stop()
    assert [len(batch) for batch in arithmetic.batches] == [1]


def test_cancelled_request_is_not_computed(new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic) -> None:
    engine = new_engine()
    arithmetic.may_go.clear()

    async def gone() -> None:
        held = asyncio.create_task(engine.embed(rows(90), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        leaving = asyncio.create_task(engine.embed(rows(1, 2, 3), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        arithmetic.may_go.set()
        await held

    asyncio.run(gone())
    assert engine.waiting == 0
    engine.stop()
    assert [len(batch) for batch in arithmetic.batches] == [1]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (ConfigError("an instruction is longer than it may be"), 422, "instruction_not_usable"),
        (WeightsError("the embedding is not finite"), 500, "not_finite"),
        (ValueError("another cause"), 500, "computation_failed"),
        (RuntimeError("secret address 0x1234"), 500, "computation_failed"),
    ],
)
def test_failing_text_fails_only_its_own_request(
    new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic, error: Exception, status: int, kind: str
) -> None:
    engine = new_engine()
    (bad,) = rows(9)
    arithmetic.errors[bad] = error
    arithmetic.may_go.clear()

    async def together() -> list[object]:
        held = asyncio.create_task(engine.embed(rows(90), [KEY], deadline_s=20))
        await asyncio.sleep(0.05)
        some = [engine.embed(own, [KEY], deadline_s=20) for own in (rows(8), [bad, *rows(10)], rows(11))]
        tasks = [asyncio.create_task(one) for one in some]
        await asyncio.sleep(0.05)
        arithmetic.may_go.set()
        await held
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, failed, last = asyncio.run(together())
    assert isinstance(first, np.ndarray)
    assert isinstance(last, np.ndarray)
    assert isinstance(failed, ApiError)
    assert (failed.status, failed.kind) == (status, kind)
    assert "0x1234" not in failed.message
    assert engine.alive
    assert engine.waiting == 0
    engine.stop()


def test_stop_computes_the_queued_requests(new_engine: Callable[..., EmbeddingEngine], arithmetic: Arithmetic) -> None:
    engine = new_engine()
    arithmetic.may_go.clear()

    async def stopped() -> None:
        waiting = [asyncio.create_task(engine.embed(rows(n), [KEY], deadline_s=20)) for n in (90, 20, 60)]
        await asyncio.sleep(0.05)
        arithmetic.may_go.set()
        await asyncio.to_thread(engine.stop)
        await asyncio.gather(*waiting)

    asyncio.run(stopped())
    assert not engine.alive
