"""Fuzzed readers of user files (recipes, mixtures, evaluation tasks) and of settings that frameworks store."""

import json
from pathlib import Path
from typing import Any

from benchmarks.faults.fuzz_inputs import mutated_json, mutated_yaml
from benchmarks.faults.fuzz_reader import FuzzedReader
from promptembedder.data import read_mixture
from promptembedder.errors import DataError, PromptEmbedderError
from promptembedder.evaluation import read_tasks
from promptembedder.integrations.embedder_view import ViewConfig
from promptembedder.storage import from_mapping, read_yaml, to_mapping
from promptembedder.training import Recipe

__all__ = ["mixture", "recipe", "tasks", "view"]


def recipe(folder: Path) -> FuzzedReader:
    """Return the reader of a training recipe in YAML."""
    path = folder / "recipe.yaml"
    # one section at a time: the pure-Python YAML parser reads only a hundred kilobytes a second
    sections = [{name: content} for name, content in to_mapping(Recipe()).items() if content is not None]
    short = {
        "data": {"pairs": "pairs.jsonl", "instructions": ["one", "two"], "limit": 10},
        "model": {
            "reader": {"source": "random:tiny-llama", "layers": 2},
            "num_soft_tokens": 3,
            "deep_prompt_interval": 0,
        },
        "optim": {"steps": 5, "batch_size": 4, "learning_rate": 1e-4},
    }
    baseline = {
        "baseline": {"kind": "static", "instruction_variants": [["a", "b"], ["c"]]},
        "run": {"output": "x", "seed": 1},
    }

    def read(data: bytes) -> Recipe:
        path.write_bytes(data)
        return from_mapping(Recipe, read_yaml(path))

    return FuzzedReader(seeds=_jsons(short, baseline, *sections), mutate=mutated_yaml, read=read)


def mixture(folder: Path) -> FuzzedReader:
    """Return the reader of a mixture of tasks, whose paths are trusted and may be outside the folder."""
    path = folder / "mixture.json"
    (folder / "pairs.jsonl").write_text('{"anchor": "a", "positive": "b"}\n', encoding="utf-8")
    task = {
        "name": "one",
        "file": "pairs.jsonl",
        "instruction": "Find it",
        "document_instruction": None,
        "in_batch_negatives": True,
    }
    other = {
        **task,
        "name": "two",
        "document_instruction": "Find it",
        "instruction_paraphrases": ["Search it"],
        "rows": 1,
    }

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_mixture(path)

    return FuzzedReader(seeds=_jsons([task], [task, other]), mutate=mutated_json, read=read, stays_inside=False)


def tasks(folder: Path) -> FuzzedReader:
    """Return the reader of an evaluation task file, whose paths are trusted."""
    path = folder / "tasks.json"
    rows = [{"sentence1": "a", "sentence2": "b", "score": 1, "label": 1, "text": "a", "split": "test", "id": 1}]
    rows.append({"sentence1": "c", "sentence2": "d", "score": 0.5, "label": 0, "text": "b", "split": "train", "id": 2})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    (folder / "qrels.jsonl").write_text('{"query_id": 1, "doc_id": 2, "relevance": 1}\n', encoding="utf-8")
    base: dict[str, Any] = {"instruction": "Find what means the same", "instruction_paraphrases": ["Search"]}
    sts = {**base, "name": "s", "type": "sts", "files": {"pairs": "rows.jsonl"}, "metric": "cosine_spearman"}
    pairs = {**sts, "name": "p", "type": "pair_classification", "metric": "max_ap", "label_field": "label"}
    labels = {**base, "name": "c", "type": "classification", "files": {"rows": "rows.jsonl"}, "metric": "accuracy"}
    labels |= {"train_split": "train"}
    search = {**base, "name": "r", "type": "retrieval", "metric": "ndcg_at_10", "same_as_mteb": None}
    search |= {"files": {"corpus": "rows.jsonl", "queries": "rows.jsonl", "qrels": "qrels.jsonl"}}

    def read(data: bytes) -> object:
        path.write_bytes(data)
        return read_tasks(path)

    return FuzzedReader(
        seeds=_jsons([sts], [pairs, labels], [search]), mutate=mutated_json, read=read, stays_inside=False
    )


def view(folder: Path) -> FuzzedReader:
    """Return the reader of an embedder's settings in LangChain, LlamaIndex, Haystack, Chroma and LanceDB."""
    del folder
    small = {"model": "runs/a", "instruction": "Find it", "document_instruction": "Read it", "max_tokens": 64}
    whole = {**small, "reader": "smollm2-135m", "revision": "main", "quantization": "int8", "device": "cpu"}

    def read(data: bytes) -> ViewConfig:
        try:
            settings: Any = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError("broken JSON, which is the framework's to refuse") from error
        found = ViewConfig.from_dict(settings)
        assert ViewConfig.from_dict(found.to_dict()) == found
        return found

    return FuzzedReader(
        # a value of a wrong type is a TypeError, as in any Python constructor
        seeds=_jsons(small, whole),
        mutate=mutated_json,
        read=read,
        refusals=(PromptEmbedderError, TypeError),
    )


def _jsons(*contents: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(content).encode() for content in contents)
