"""Laws of `python -m benchmarks serve`: real servers and real load, at a scale of seconds."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.integration

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("results")
    words = "--reader random:tiny-llama --clients 3 --request-texts 1,4 --seconds 0.5 --rounds 1 --length 32 --texts 2"
    command = f"-m benchmarks serve {words} --soak-seconds 3 --soak-waiting 4 --dtype float32 --json -o {folder}"
    # a process of its own: other tests give random models other weights than the servers' processes do
    result = subprocess.run([sys.executable, *command.split()], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1]), folder


@pytest.mark.minutes
def test_every_server_is_measured_in_every_way(measured: tuple[dict[str, Any], Path]) -> None:
    content, _ = measured
    ours, plain = "promptembedder", "FastAPI + sentence-transformers"
    found = [(row["kind"], row["server"], row.get("texts", row.get("way"))) for row in content["rows"]]
    assert found == [
        *(("mixed", server, count) for count in (1, 4) for server in (ours, plain)),
        ("instructions", ours, "one request"),
        ("instructions", ours, "eight requests"),
        ("instructions", plain, "eight requests"),
        ("one client", ours, None),
        ("one client", ours, None),
        ("overload", ours, None),
    ]
    for row in content["rows"]:
        if row["kind"] in ("mixed", "instructions"):
            assert set(row["statuses"]) == {"200"}
            assert 0 < row["p50_seconds"] <= row["p99_seconds"]
            assert row["requests_per_second"] > 0


@pytest.mark.minutes
def test_under_overload_nothing_is_wrong_and_nothing_lost(measured: tuple[dict[str, Any], Path]) -> None:
    row = measured[0]["rows"][-1]
    assert set(row["statuses"]) == {"200", "429"}
    assert sum(row["statuses"].values()) == row["requests"]
    assert row["wrong_vectors"] == row["mixed_up"] == 0
    assert row["lowest_cosine"] > 0.9999


@pytest.mark.minutes
def test_the_page_is_written_from_the_numbers(measured: tuple[dict[str, Any], Path]) -> None:
    content, folder = measured
    saved = json.loads((folder / "serve.json").read_text(encoding="utf-8"))
    assert saved["rows"] == content["rows"]
    page = (folder / "serve.md").read_text(encoding="utf-8")
    for row in content["rows"][:4]:
        assert f"{row['requests_per_second']:.2f}" in page
    assert content["commands"][0] in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--clients", "0"), "clients must be at least 1"),
        (("--clients", "999"), "clients must be at most 256"),
        (("--request-texts", "0"), "request_texts must be between 1 and 200"),
        (("--infinity", "/no/such/program"), "is no program"),
        (("--reader", "random:none"), "no random model is named 'none'"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_told_in_one_line(refused: Refused, words: tuple[str, ...], said: str) -> None:
    assert said in refused("serve", *words)
