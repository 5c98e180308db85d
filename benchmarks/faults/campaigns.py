"""Registry of fault campaigns, their default numbers of faults, and their results."""

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

__all__ = ["CAMPAIGNS", "ReliabilityConfig", "campaign_row", "run_reliability"]


@runtime_checkable
class _Run(Protocol):
    def __call__(self, *, count: int, seed: int, on_done: Callable[[int], None]) -> Campaign: ...


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """Entry of the registry.

    Attributes:
        short: Default number of faults. All campaigns together take minutes.
        full: Number of faults with `--full`. All campaigns together take three hours.
        unit: Unit of the count.
    """

    run: _Run
    short: int
    full: int
    unit: str


CAMPAIGNS: dict[str, _Entry] = {
    "kills-training": _Entry(run=kills_in_training, short=2, full=120, unit="kills"),
    "kills-saving": _Entry(run=kills_in_saving, short=4, full=120, unit="kills"),
    "full-disks": _Entry(run=full_disks, short=3, full=60, unit="full disks"),
    "corrupted-folders": _Entry(run=corrupted_folders, short=20, full=2000, unit="folders"),
    "soak": _Entry(run=soaked, short=3, full=3600, unit="texts"),
    **{name: _Entry(run=run, short=40, full=10_000, unit=name) for name, run in TEXTS.items()},
    **{f"fuzz-{name}": _Entry(run=run, short=200, full=100_000, unit="inputs") for name, run in FUZZED.items()},
}


@dataclass(frozen=True, kw_only=True)
class ReliabilityConfig:
    """Settings of the fault campaigns.

    Attributes:
        full: If True, run the long campaigns, which a report is based on.
        only: Names in `CAMPAIGNS`. If empty, all campaigns run.
        seed: Seed of all random choices.
    """

    full: bool = False
    only: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Validate the values."""
        unknown = [name for name in self.only if name not in CAMPAIGNS]
        if unknown:
            raise ConfigError(f"unknown campaign {unknown[0]!r}. Known: {', '.join(CAMPAIGNS)}.")


def run_reliability(
    config: ReliabilityConfig,
    *,
    on_part: Callable[[str], None] = lambda _: None,
    on_row: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run the campaigns sequentially, and return one row for each, with the command that repeats it.

    Args:
        on_part: Called with a description of the current part.
        on_row: Called with each finished row.

    Raises:
        ConfigError: If the system has no fork.
    """
    rows = []
    with _one_thread():
        for name in config.only or CAMPAIGNS:
            entry = CAMPAIGNS[name]
            count = entry.full if config.full else entry.short
            on_part(name)
            found = entry.run(
                count=count,
                seed=config.seed,
                on_done=lambda done, name=name, count=count: on_part(f"{name}: {done} of {count}"),  # type: ignore[misc]
            )
            rows.append(campaign_row(dataclasses.replace(found, name=name), full=config.full))
            on_row(rows[-1])
    return rows


def campaign_row(campaign: Campaign, *, full: bool) -> dict[str, Any]:
    """Return a campaign as plain values, with command, machine and versions."""
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
    """Limit torch to one thread: a fork of a process with OpenMP threads would deadlock."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
