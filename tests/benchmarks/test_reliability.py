"""A few faults of each campaign, through the command; and that a campaign notices what does go wrong."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.campaigns import CAMPAIGNS, ReliabilityConfig
from benchmarks.faults.child import run_in_child
from benchmarks.faults.report import reliability_markdown, write_reliability
from benchmarks.faults.soak import SoakSample, grown_bytes
from promptembedder.errors import ConfigError, DataError

# texts and readers have tests of their own, beside this one
FAULTS = [name for name in CAMPAIGNS if name not in ("texts", "instructions") and not name.startswith("fuzz-")]
MINUTES = ("kills-training",)  # trains at least four runs; tests/training resumes stopped runs

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not hasattr(os, "fork"), reason="faults are tried in forks")]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """The short campaigns; in a process of their own, since a fork of one with gradients computes none."""
    folder = tmp_path_factory.mktemp("reliability")
    page = folder / "page.md"
    page.write_text("before\n<!-- reliability -->\n<!-- end reliability -->\nafter\n")
    command = [sys.executable, "-m", "benchmarks", "reliability", "--json", "-o", str(folder)]
    tried = [name for name in FAULTS if name not in MINUTES or request.config.getoption("--all")]
    command += ["--only", ",".join(tried)]
    done = subprocess.run([*command, "--document", str(page)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(f"| {name} | " in page.read_text() for name in tried)
    found = json.loads(done.stdout.splitlines()[-1])["campaigns"]
    assert json.loads((folder / "reliability.json").read_text())["campaigns"] == found
    return {row["name"]: row for row in found}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.minutes if name in MINUTES else ()) for name in FAULTS]
)
def test_a_short_campaign_survives_whole(rows: dict[str, dict[str, Any]], name: str) -> None:
    row = rows[name]
    assert row["failures"] == []
    assert row["survived"] == row["tried"] >= 1


def test_a_child_that_ends_well_fails_hangs_or_is_killed_is_told_apart() -> None:
    assert run_in_child(lambda: None).error is None
    assert "ZeroDivisionError" in (run_in_child(lambda: 1 // 0).error or "")
    hanging = run_in_child(lambda: time.sleep(60), limit_s=0.05)
    assert (hanging.killed, hanging.error) == (False, "still at work after 0.05 s")
    killed = run_in_child(lambda: time.sleep(60), kill_after_s=0.05)
    assert (killed.killed, killed.error) == (True, None)
    assert run_in_child(lambda: os.kill(os.getpid(), 15)).error == "died of signal 15"


def test_memory_that_grows_is_noticed_and_a_warm_up_is_not_growth() -> None:
    def samples(*levels: int) -> list[SoakSample]:
        return [SoakSample(seconds=i, resident_bytes=level, texts=0, wrong=0) for i, level in enumerate(levels)]

    assert grown_bytes(samples(0, *[100] * 29)) == 0
    assert grown_bytes(samples(*range(0, 3000, 100))) > 1500


def _row(name: str, **changes: Any) -> dict[str, Any]:
    usual = {"tried": 10_000, "survived": 9_999, "seconds": 1.0, "seed": 0, "notes": "n", "failures": ["trial 3: bad"]}
    return {"name": name, **usual, "unit": "kills", "command": "c", "machine": {}, "versions": {}, **changes}


def test_the_page_shows_each_failure_and_never_rounds_up_to_all(tmp_path: Path) -> None:
    page = reliability_markdown({"campaigns": [_row("kills-saving")]})
    assert "| kills-saving | 10,000 kills | 9,999 | 99.99 % |" in page
    assert "- kills-saving: trial 3: bad" in page


def test_a_campaign_run_again_takes_the_place_of_its_row(tmp_path: Path) -> None:
    write_reliability([_row("soak"), _row("kills-saving")], tmp_path)
    write_reliability([_row("soak", tried=7)], tmp_path)
    content = json.loads((tmp_path / "reliability.json").read_text())
    assert [(row["name"], row["tried"]) for row in content["campaigns"]] == [("soak", 7), ("kills-saving", 10_000)]
    (tmp_path / "reliability.json").write_text("[]")
    with pytest.raises(DataError, match="holds no campaigns"):
        write_reliability([_row("soak")], tmp_path)


def test_an_unknown_campaign_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown campaign 'kill'. Known: kills-training"):
        ReliabilityConfig(only=("kill",))
