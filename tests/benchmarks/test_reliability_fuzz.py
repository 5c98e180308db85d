"""Hostile inputs, a short run: the long one is `python -m benchmarks reliability`."""

import json
import subprocess
import sys

import pytest

from benchmarks.faults.fuzz_inputs import (
    fuzz_input,
    mutated_bytes,
    mutated_json,
    mutated_lines,
    mutated_tensor_file,
    mutated_yaml,
)
from benchmarks.faults.fuzz_reader import FuzzedReader, OutsideWatch

JSON = (b'{"a": [1, {"b": null}], "c": "x"}', b"[[1], 2]")
TENSORS = (b"\x02\0\0\0\0\0\0\0{}", b'\x0b\0\0\0\0\0\0\0{"a": [1]} ' + b"\0" * 8)
# in a process of its own, since here the types of every call are checked, which would notice first
SHORT = """
import json, logging, sys, tempfile, warnings
from contextlib import ExitStack
from pathlib import Path
from benchmarks.faults.fuzz_inputs import fuzz_input
from benchmarks.faults.fuzz_reader import OutsideWatch
from benchmarks.faults.fuzz_worker import READERS, made_reader

logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
told = {}
with tempfile.TemporaryDirectory() as place, ExitStack() as resources:
    for name in READERS:
        if name in ("server", "opening", "gguf"):  # seconds each; their tests are beside them
            continue
        folder = Path(place) / name
        folder.mkdir()
        reader, watch = made_reader(name, folder, resources), OutsideWatch(folder)
        said = [reader.outcome(seed, watch) for seed in reader.seeds]
        made = (fuzz_input(reader.mutate, reader.seeds, seed=11, index=index) for index in range(40))
        told[name] = {"seeds": said, "faults": [said for said in (reader.outcome(one, watch) for one in made) if said]}
print(json.dumps(told))
"""


@pytest.mark.parametrize(
    ("mutation", "seeds"),
    [
        (mutated_bytes, JSON),
        (mutated_json, JSON),
        (mutated_lines, JSON),
        (mutated_yaml, JSON),
        (mutated_tensor_file, TENSORS),
    ],
)
def test_an_input_is_had_again_by_its_seed_and_number_and_inputs_differ(mutation, seeds) -> None:
    made = [fuzz_input(mutation, seeds, seed=3, index=index) for index in range(200)]
    assert made == [fuzz_input(mutation, seeds, seed=3, index=index) for index in range(200)]
    assert tuple(made[:2]) == seeds
    assert len(set(made)) > 100
    assert made[2:] != [fuzz_input(mutation, seeds, seed=4, index=index) for index in range(2, 200)]


@pytest.mark.integration
def test_every_reader_takes_its_seeds_and_survives_hostile_inputs() -> None:
    done = subprocess.run([sys.executable, "-c", SHORT], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert len(told) == 17
    for name, outcomes in told.items():
        assert all(said is None for said in outcomes["seeds"][:1]), name
        assert outcomes["faults"] == [], name


def test_other_errors_long_words_and_files_outside_are_faults(tmp_path) -> None:
    def read(data: bytes) -> object:
        if data == b"wrong":
            raise KeyError("x")
        if data == b"long":
            raise ValueError("x" * 9000)
        if data == b"outside":
            return open("/etc/hostname", "rb").close()
        if data == b"refused":
            raise ValueError("no")
        return data

    reader = FuzzedReader(seeds=(), mutate=mutated_bytes, read=read, refusals=(ValueError,))
    watch = OutsideWatch(tmp_path)
    assert reader.outcome(b"fine", watch) is None
    assert reader.outcome(b"refused", watch) == ""
    assert "KeyError" in (reader.outcome(b"wrong", watch) or "")
    assert "too long" in (reader.outcome(b"long", watch) or "")
    assert "/etc/hostname" in (reader.outcome(b"outside", watch) or "")
