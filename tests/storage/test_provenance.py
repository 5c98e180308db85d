"""What results say about where they come from."""

import hashlib
import json
import platform
from pathlib import Path

import torch

from promptembedder.storage import describe_machine, file_sha256, versions


def test_the_facts_of_a_machine_stay_the_same_and_fit_into_json() -> None:
    facts = describe_machine()
    assert facts == describe_machine()
    assert json.loads(json.dumps(facts)) == facts
    assert 1 <= facts["cores"] <= facts["cpus"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu"]
    assert facts["memory_bytes"] > 1 << 28
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())


def test_versions_name_what_is_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {"promptembedder", "torch", "transformers", "sentence-transformers", "peft"} <= found.keys()


def test_a_file_is_hashed_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"abc")
    assert file_sha256(path) == hashlib.sha256(b"abc").hexdigest()
