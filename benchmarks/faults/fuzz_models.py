"""Fuzzed readers of untrusted metadata of saved models, checkpoints, backbones and jobs."""

import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.faults.fuzz_inputs import mutated_bytes, mutated_json, mutated_lines, mutated_tensor_file
from benchmarks.faults.fuzz_reader import FuzzedReader
from benchmarks.faults.gguf import write_tiny_gguf
from benchmarks.faults.model import tiny_embedder
from promptembedder.backbone import check_gguf, convert_gguf, find_source
from promptembedder.batch import JOB_NAME, MANIFEST_LINES, ShardFolder, ShardRecord
from promptembedder.model import PromptEmbedder, load_encoder, model_config, read_self_test, reader_records
from promptembedder.storage import MANIFEST_NAME, read_manifest
from promptembedder.storage.tensors import load_state, load_tensors, save_state, save_tensors
from promptembedder.training.checkpoints import find_last_checkpoint, write_checkpoint

__all__ = ["checkpoint", "gguf", "gguf_header", "manifest", "opening", "self_test", "shards", "state", "tensors"]

_INSTRUCTIONS = ["Find the same thing", "Which one is meant?"]


def tensors(folder: Path) -> FuzzedReader:
    """Return the reader of a safetensors file of weights."""
    path = folder / "weights.safetensors"
    held = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.arange(3)}
    seeds = [_bytes_of(path, held), _bytes_of(path, {"soft_tokens": torch.zeros(2, 3, 4)})]

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return load_tensors(path)

    return FuzzedReader(seeds=seeds, mutate=mutated_tensor_file, read=read)


def manifest(folder: Path) -> FuzzedReader:
    """Return the reader of `promptembedder.json`: file names, readers, and the configuration of each reader."""
    seeds = [_saved_model(folder / "model"), *_manifests_by_hand(folder / "model")]
    _lay_traps(folder / "model")

    def read(data: bytes) -> object:
        (folder / "model" / MANIFEST_NAME).write_bytes(data)
        found = read_manifest(folder / "model")
        return [(entry, model_config(found)) for entry in reader_records(found)]

    return FuzzedReader(seeds=seeds, mutate=mutated_json, read=read)


def opening(folder: Path) -> FuzzedReader:
    """Return the reader of a whole model: manifest, backbones, alignment, soft tokens."""
    seeds = [_saved_model(folder / "model")]
    _lay_traps(folder / "model")

    def read(data: bytes) -> object:
        (folder / "model" / MANIFEST_NAME).write_bytes(data)
        return load_encoder(str(folder / "model"), device="cpu", cache_folder=folder / "cache")

    return FuzzedReader(seeds=seeds, mutate=mutated_json, read=read)


def self_test(folder: Path) -> FuzzedReader:
    """Return the reader of the reference vector of a saved model."""
    path = folder / "self_test.json"
    content = {"instruction": "Find it", "reader": "random", "dtype": "float32", "vector": [0.6, 0.8]}

    def read(data: bytes) -> object:
        path.write_bytes(data)
        found = read_self_test(folder)
        return None if found is None else found.check(np.array([0.6, 0.8], dtype=np.float32), dtype="float32")

    return FuzzedReader(seeds=[json.dumps(content).encode()], mutate=mutated_json, read=read)


def state(folder: Path) -> FuzzedReader:
    """Return the reader of a checkpoint's optimiser state."""
    save_state(folder, "state", {"step": 3, "groups": [{"lr": 1e-3, 0: (1, None)}], "moments": {"a": torch.ones(2)}})

    def read(data: bytes) -> object:
        (folder / "state.json").write_bytes(data)
        return load_state(folder, "state")

    return FuzzedReader(seeds=[(folder / "state.json").read_bytes()], mutate=mutated_json, read=read)


def checkpoint(folder: Path) -> FuzzedReader:
    """Return the reader of a checkpoint's file list. A damaged checkpoint is skipped and never an error."""
    with write_checkpoint(folder / "run", 5) as scratch:
        (scratch / "weights").write_bytes(b"abc")
    place = folder / "run" / "checkpoint-5"
    _lay_traps(place)
    path = place / "checkpoint.json"

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return find_last_checkpoint(folder / "run")

    return FuzzedReader(seeds=[path.read_bytes()], mutate=mutated_json, read=read)


def shards(folder: Path) -> FuzzedReader:
    """Return the reader of the shard manifest of an embedding job."""
    job = {"model_sha256": "ab" * 32, "columns": {"embedding": "Find it"}, "inputs": [["a.jsonl", "cd" * 32]]}
    output = folder / "output"
    output.mkdir()
    (output / JOB_NAME).write_text(json.dumps(job), encoding="utf-8")
    _lay_traps(output)
    (output / "part-0.parquet").write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    record: dict[str, Any] = {"shard": 0, "file": "part-0.parquet", "sha256": digest, "rows": 2, "rejected": 0}
    record |= {"rejects": None, "rejects_sha256": None, "source": "a.jsonl", "source_sha256": "cd" * 32}
    record |= {"first_row": 0, "model_sha256": "ab" * 32, "instructions_sha256": "ef" * 32, "versions": {"torch": "2"}}
    record |= {"tokens": 9, "padding": 1, "truncated": 0}
    line = json.dumps(record).encode() + b"\n"

    def read(data: bytes) -> object:
        (output / MANIFEST_LINES).write_bytes(data)
        held = ShardFolder(output)
        held.begin(job, overwrite=False)
        records: dict[int, ShardRecord] = {n: one for n, one in held.finished().items() if held.is_intact(one)}
        return sum(one.rows + one.tokens + one.padding + one.truncated for one in records.values()), sorted(records)

    return FuzzedReader(
        seeds=[line, line + line.replace(b'"shard": 0', b'"shard": 1')], mutate=mutated_lines, read=read
    )


def gguf_header(folder: Path) -> FuzzedReader:
    """Return the reader of a GGUF file's header, which is checked before a third-party library parses the file."""
    path = folder / "tiny.gguf"
    write_tiny_gguf(path)
    whole = path.read_bytes()
    # the fields to attack precede the weights, which would otherwise receive most of the changes
    start = whole.index(b"token_embd.weight")

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return check_gguf(path, name="tiny.gguf")

    return FuzzedReader(seeds=[whole], mutate=partial(mutated_bytes, within=start + 3000), read=read)


def gguf(folder: Path) -> FuzzedReader:
    """Return the reader that converts a whole GGUF file to a model."""
    header = gguf_header(folder)

    def read(data: bytes) -> object:
        (folder / "tiny.gguf").write_bytes(data)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        return convert_gguf(find_source(str(folder / "tiny.gguf")), folder / "cache")

    return FuzzedReader(seeds=header.seeds, mutate=header.mutate, read=read)


def _saved_model(folder: Path) -> bytes:
    model: PromptEmbedder = tiny_embedder()
    model.compile_instructions(_INSTRUCTIONS)
    model.save(str(folder), create_model_card=False)
    return (folder / MANIFEST_NAME).read_bytes()


def _manifests_by_hand(folder: Path) -> list[bytes]:
    """Return the manifests of the same model in an older format and with a second reader."""
    content = json.loads((folder / MANIFEST_NAME).read_bytes())
    old = {**content, "config": {key: content["config"][key] for key in ("prompter", "reader", "num_soft_tokens")}}
    second = {"config": content["config"], "backbone": content["backbones"]["reader"], "instructions": []}
    both = {**content, "format": 2, "readers": [second]}
    return [json.dumps(one).encode() for one in (old, both)]


def _lay_traps(folder: Path) -> None:
    """Create a file next to the folder, and a link to that file inside the folder."""
    outside = folder.parent.parent / f"{folder.parent.name}-outside"
    outside.write_text("{}", encoding="utf-8")
    (folder.parent / "outside").write_text("{}", encoding="utf-8")
    os.symlink(outside, folder / "link")
    (folder / "sub").mkdir()


def _bytes_of(path: Path, held: dict[str, torch.Tensor]) -> bytes:
    save_tensors(path, held)
    return path.read_bytes()
