"""Pictures are written whatever the numbers; what they look like is for eyes."""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from promptembedder.plots import (
    QualityCurve,
    QualityPoint,
    StepPoint,
    TaskScorePoint,
    plot_memory,
    plot_quality_over_time,
    plot_step_time,
    plot_task_scores,
)


def assert_pictures(paths: Sequence[Path], stem: Path) -> None:
    assert list(paths) == [stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    assert ElementTree.parse(paths[1]).getroot().tag.endswith("svg")
    assert sorted(path.name for path in stem.parent.iterdir()) == sorted(path.name for path in paths)


def step_point(method: str, length: int, batch: int, *, fits: bool = True) -> StepPoint:
    cost = length * batch if fits else None
    return StepPoint(
        method=method,
        length=length,
        batch=batch,
        seconds=None if cost is None else cost / 100,
        activation_bytes=None if cost is None else cost * 10**6,
        peak_bytes=None if cost is None else cost * 10**6 + 10**9,
    )


STEPS = {
    "usual": [step_point(name, size, batch) for name in ("lora", "static") for size in (8, 64) for batch in (2, 4)],
    "one point": [step_point("lora", 8, 2)],
    "some without memory": [step_point("lora", 8, batch, fits=batch < 4) for batch in (2, 4, 8)],
    "all without memory": [step_point("lora", 8, 2, fits=False)],
    "no activations": [
        StepPoint(method="lora", length=8, batch=batch, seconds=1.0, activation_bytes=0, peak_bytes=batch)
        for batch in (2, 4)
    ],
    "in a narrow range": [step_point("lora", 100, 10), step_point("lora", 100, 11)],
}


@pytest.mark.parametrize("points", STEPS.values(), ids=STEPS.keys())
def test_step_times_and_memory_are_drawn(points: list[StepPoint], tmp_path: Path) -> None:
    assert_pictures(
        plot_step_time(points, tmp_path / "time" / "steps", title="a_title $5"), tmp_path / "time" / "steps"
    )
    assert_pictures(plot_memory(points, tmp_path / "memory" / "steps"), tmp_path / "memory" / "steps")


def curve(
    method: str, scores: Sequence[float], *, seed: int = 0, every: int = 10, seconds_by_seed: bool = True
) -> QualityCurve:
    slower = 0.1 * seed if seconds_by_seed else 0.0
    points = (
        QualityPoint(step=every * place, seconds=every * place * (1.5 + slower), score=score)
        for place, score in enumerate(scores)
    )
    return QualityCurve(method=method, points=tuple(points), seed=seed)


CURVES = {
    "usual": [curve("lora", [1, 2, 3], seed=seed) for seed in (0, 1)] + [curve("static", [1, 1.5])],
    "one point": [curve("lora", [1])],
    "a seed that was cut short": [curve("lora", [1, 2, 3]), curve("lora", [1, 2], seed=1)],
    "seeds without a common step": [
        curve("lora", [1, 2, 3]),
        QualityCurve(method="lora", points=(QualityPoint(step=7, seconds=1, score=1),), seed=1),
    ],
}


@pytest.mark.parametrize("curves", CURVES.values(), ids=CURVES.keys())
def test_quality_over_time_is_drawn(curves: list[QualityCurve], tmp_path: Path) -> None:
    stem = tmp_path / "quality"
    assert_pictures(plot_quality_over_time(curves, stem, title="title", references={"frozen": 1.2, "bm25": 2}), stem)


def test_a_line_is_the_mean_of_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    def drawn(name: str, *scores: Sequence[float]) -> bytes:
        curves = [curve("lora", points, seed=seed, seconds_by_seed=False) for seed, points in enumerate(scores)]
        return plot_quality_over_time(curves, tmp_path / name)[0].read_bytes()

    two = drawn("two", [1, 2], [3, 4])
    assert drawn("a further step, and a seed at the mean", [1, 2, 3], [3, 4], [2, 3]) == two
    assert drawn("a seed above the mean", [1, 2], [3, 4], [3, 4]) != two


def test_task_scores_are_drawn(tmp_path: Path) -> None:
    scores = [
        TaskScorePoint(task=task, method=method, score=score, seed=seed)
        for method, score in (("promptembedder", 70.0), ("lora", 71.0))
        for task in ("STS_B", "Banking77")
        for seed in (0, 1)
    ]
    alone = [TaskScorePoint(task="one", method="static", score=1.0)]
    for name, points in (("many", scores), ("alone", alone), ("with a gap", [*scores, *alone])):
        stem = tmp_path / name / "scores"
        assert_pictures(plot_task_scores(points, stem, title="title"), stem)


def test_a_mean_over_tasks_is_of_seeds_that_have_them_all(tmp_path: Path) -> None:
    def drawn(name: str, *scores: tuple[str, float, int]) -> bytes:
        points = [TaskScorePoint(task=task, method="lora", score=score, seed=seed) for task, score, seed in scores]
        return plot_task_scores(points, tmp_path / name)[0].read_bytes()

    whole = (("a", 1.0, 0), ("b", 3.0, 0), ("a", 5.0, 1), ("b", 7.0, 1))
    assert drawn("whole", *whole) != drawn("without b", *whole[:3])
    # the third seed has one task only; on that task it is at the mean, and the mean over tasks leaves it out
    assert drawn("a third seed", *whole, ("a", 3.0, 2)) == drawn("two seeds", *whole)
