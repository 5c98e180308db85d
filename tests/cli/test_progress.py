"""Progress where stderr is no terminal: a line every 30 seconds, with rate and remaining time."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from promptembedder.cli import progress
from promptembedder.cli.progress import ProgressDisplay, format_duration


class Clock:
    """Time in seconds, which the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


Work = Callable[..., list[str]]


@pytest.fixture
def work() -> Work:
    """Does work in batches, as (seconds, units), and returns the printed lines."""

    def run(batches: list[tuple[float, int]], *, terminal: bool = False, **options: object) -> list[str]:
        clock, stream = Clock(), io.StringIO()
        console = Console(file=stream, force_terminal=terminal, width=80, color_system=None)
        with ProgressDisplay("rows", console=console, clock=clock, **options) as display:
            for seconds, units in batches:
                clock.now += seconds
                display.advance(units)
        return stream.getvalue().splitlines()

    return run


def test_a_log_file_gets_a_line_every_thirty_seconds_with_rate_and_time_left(work: Work) -> None:
    """Nothing at all was printed where stderr was redirected to a file."""
    lines = work([(100, 10), *((10, 20) for _ in range(9))], total=10_000, measured=10_000)
    assert lines[0] == "10 of 10000 rows"  # no rate yet: the first batch includes the loading of the model
    assert lines[1] == "70 of 10000 rows, 2 rows/s, 83 min left"
    assert lines[2] == "130 of 10000 rows, 2 rows/s, 82 min left"
    assert len(lines) == 4


def test_long_work_begins_with_an_estimate_and_short_work_does_not(work: Work) -> None:
    batches = [(5, 10), *((4, 10) for _ in range(6))]
    (line,) = work(batches, total=50_000)
    assert line == "estimate: 5.5 h left at 2.5 rows/s on this machine (50 rows measured)"
    assert work(batches, total=100) == []
    assert work(batches) == []


def test_without_a_total_there_is_a_rate_but_no_time_left(work: Work) -> None:
    assert work([(10, 5), (30, 60)]) == ["65 rows, 2 rows/s"]


def test_one_unit_is_singular(work: Work) -> None:
    assert work([(40, 1)]) == ["1 row"]
    (line,) = work([(1, 1), (1000, 1)], total=100, measured=1)[:1]
    assert line.endswith("on this machine (1 row measured)")


def test_a_terminal_gets_a_bar_and_no_lines(work: Work) -> None:
    text = "\n".join(work([(100, 10), (40, 20)], total=60, terminal=True))
    assert "30/60" in text and "rows/s" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (45, "45 s"), (89, "89 s"), (90, "1.5 min"), (5.6 * 3600, "5.6 h"), (200000, "2.3 days")],
)
def test_durations_have_two_digits(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_kinds_of_work_are_shown_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[str] = []
    ended: list[str] = []

    class Display(ProgressDisplay):
        def __enter__(self) -> "Display":
            started.append(self._unit)
            return self

        def __exit__(self, *_: object) -> None:
            ended.append(self._unit)

    monkeypatch.setattr(progress, "ProgressDisplay", Display)
    with progress.unit_progress() as show:
        show("files", 1, 2)
        show("files", 2, 2)
        show("steps", 1, 9)
        assert (started, ended) == (["files", "steps"], ["files"])
    assert ended == ["files", "steps"]
