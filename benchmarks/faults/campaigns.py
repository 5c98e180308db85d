"""Faults tried on purpose: a registry of campaigns, how many of each, and what they found."""

import dataclasses
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from benchmarks.faults.folders import corrupted_folders
from benchmarks.faults.fuzz import FUZZED
from benchmarks.faults.result import Campaign
from benchmarks.faults.saving import full_disks, kills_in_saving
from benchmarks.faults.soak import soaked
from benchmarks.faults.text import TEXTS
from benchmarks.faults.training import kills_in_training
from promptembedder.errors import ConfigError
from promptembedder.storage import describe_machine, versions

__all__ = ["CAMPAIGNS", "ReliabilitySettings", "campaign_row", "run_reliability"]


@runtime_checkable
class _Run(Protocol):
    def __call__(self, *, count: int, seed: int, on_done: Callable[[int], None]) -> Campaign: ...


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A campaign.

    Attributes:
        short: How many faults where nothing else is said; minutes all together.
        full: With `--full`; three hours all together.
        unit: What is counted.
    """

    run: _Run
    short: int
    full: int
    unit: str


CAMPAIGNS: dict[str, _Entry] = {
    "kills-training": _Entry(run=kills_in_training, short=4, full=120, unit="kills"),
    "kills-saving": _Entry(run=kills_in_saving, short=4, full=120, unit="kills"),
    "full-disks": _Entry(run=full_disks, short=4, full=60, unit="full disks"),
    "corrupted-folders": _Entry(run=corrupted_folders, short=40, full=2000, unit="folders"),
    "soak": _Entry(run=soaked, short=5, full=3600, unit="texts"),
    **{name: _Entry(run=run, short=40, full=10_000, unit=name) for name, run in TEXTS.items()},
    **{f"fuzz-{name}": _Entry(run=run, short=200, full=100_000, unit="inputs") for name, run in FUZZED.items()},
}


@dataclass(frozen=True, kw_only=True)
class ReliabilitySettings:
    """What is tried.

    Attributes:
        full: The long campaigns, of which a report is made.
        only: Names in `CAMPAIGNS`; none: all of them.
        seed: Of all that is drawn.
    """

    full: bool = False
    only: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check each value at the door."""
        unknown = [name for name in self.only if name not in CAMPAIGNS]
        if unknown:
            raise ConfigError(f"unknown campaign {unknown[0]!r}. Known: {', '.join(CAMPAIGNS)}.")


def run_reliability(
    settings: ReliabilitySettings,
    *,
    on_part: Callable[[str], None] = lambda _: None,
    on_row: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run the campaigns one after the other; a row each, with what repeats it.

    Args:
        on_part: Called with what is done now.
        on_row: Called with each row as soon as there is one.

    Raises:
        ConfigError: The system has no fork.
    """
    rows = []
    with _one_thread():
        for name in settings.only or CAMPAIGNS:
            entry = CAMPAIGNS[name]
            count = entry.full if settings.full else entry.short
            on_part(name)
            found = entry.run(
                count=count,
                seed=settings.seed,
                on_done=lambda done, name=name, count=count: on_part(f"{name}: {done} of {count}"),  # type: ignore[misc]
            )
            rows.append(campaign_row(dataclasses.replace(found, name=name), full=settings.full))
            on_row(rows[-1])
    return rows


def campaign_row(campaign: Campaign, *, full: bool) -> dict[str, Any]:
    """A campaign as plain values, with command, machine and versions."""
    words = ["benchmarks", "reliability", *(["--full"] if full else []), "--only", campaign.name]
    return {
        **dataclasses.asdict(campaign),
        "failures": list(campaign.failures),
        "unit": CAMPAIGNS[campaign.name].unit,
        "command": shlex.join([*words, "--seed", str(campaign.seed)]),
        "machine": describe_machine(),
        "versions": versions(),
    }


@contextmanager
def _one_thread() -> Iterator[None]:
    """A fork of a process whose OpenMP has made threads waits for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
