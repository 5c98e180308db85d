"""What results say about where they come from."""

import json
import platform

import torch

from promptembedder.benchmarks import fingerprint_of, machine_facts, versions


def test_the_facts_of_a_machine_stay_the_same_and_fit_into_json() -> None:
    facts = machine_facts()
    assert facts == machine_facts()
    assert json.loads(json.dumps(facts)) == facts
    assert 1 <= facts["cores"] <= facts["cpus"]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["cpu"]
    assert (facts["gpu"] is None) == (not torch.cuda.is_available())


def test_versions_name_what_is_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert {"promptembedder", "torch", "transformers", "sentence-transformers", "peft"} <= found.keys()


def test_a_fingerprint_is_of_the_facts_and_not_of_their_order() -> None:
    assert fingerprint_of({"a": 1, "b": 2}) == fingerprint_of({"b": 2, "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
