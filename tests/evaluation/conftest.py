"""A small task file of every type, and an encoder that needs no weights."""

import gzip
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = [f"{consonant}{vowel}" for consonant in "bcdfghjklmnp" for vowel in "aeiou"]
COARSE, FINE = "attend to the first word", "attend to the second word"


def sentence(number: int) -> str:
    """A few words, different for each number."""
    drawn = np.random.default_rng(number).choice(WORDS, size=4)
    return " ".join(drawn)


def entries() -> list[dict[str, Any]]:
    pairs = {"files": {"pairs": "pairs.jsonl.gz"}, "split": "test"}
    rows = {"files": {"rows": "rows.jsonl"}, "split": "test"}
    return [
        {"name": "Alike", "type": "sts", "instruction": "compare", "metric": "cosine_spearman", **pairs},
        {"name": "Same", "type": "pair_classification", "instruction": "compare", "metric": "cosine_ap", **pairs},
        {
            **{"name": "First", "type": "classification", "instruction": COARSE, "metric": "accuracy", **rows},
            **{"train_split": "train", "rows": 40, "labels": 2},
        },
        {
            **{"name": "Second", "type": "classification", "instruction": FINE, "metric": "accuracy", **rows},
            **{"train_split": "train", "label_field": "fine"},
        },
        {"name": "Groups", "type": "clustering", "instruction": COARSE, "metric": "v_measure", **rows},
        {
            **{"name": "Search", "type": "retrieval", "instruction": "find it", "metric": "ndcg_at_10"},
            "files": {"corpus": "corpus.jsonl", "queries": "queries.jsonl", "qrels": "qrels.tsv"},
            "instruction_paraphrases": ["look for it", "seek it", "search it"],
        },
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    content = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    """40 pairs (each first sentence is in two), 40 texts (and 64 to learn from) and 30 queries on 400 documents."""
    generator = np.random.default_rng(0)
    pairs = [
        {"sentence1": sentence(row // 2), "sentence2": sentence(1000 + row), "score": float(generator.uniform(0, 5))}
        for row in range(40)
    ]
    write_rows(
        tmp_path / "pairs.jsonl.gz",
        [{**pair, "label": row % 2, "split": "test"} for row, pair in enumerate(pairs)]
        + [{**pairs[0], "label": 1, "split": "dev"}],
    )
    # the first word tells the coarse label, the second one the fine label
    write_rows(
        tmp_path / "rows.jsonl",
        [
            {
                **{"text": f"{'ab'[row % 2]} {'cdef'[row // 2 % 4]} {sentence(row)}", "label": f"coarse {row % 2}"},
                **{"fine": row // 2 % 4, "split": "test" if row < 40 else "train"},
            }
            for row in range(104)
        ],
    )
    write_rows(
        tmp_path / "corpus.jsonl",
        [{"id": f"d{row}", "title": "", "text": sentence(row)} for row in range(400)],
    )
    write_rows(tmp_path / "queries.jsonl", [{"id": f"q{row}", "text": sentence(5000 + row)} for row in range(31)])
    qrels = [f"q{row}\td{(row * 13 + k) % 400}\t{1 + k % 2}" for row in range(30) for k in range(1 + row % 4)]
    (tmp_path / "qrels.tsv").write_text("\n".join(["query_id\tdoc_id\trelevance", *qrels, "q30\td3\t0", ""]))
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(entries()))
    return path


@pytest.fixture
def change_task(task_file: Path) -> Callable[..., Path]:
    """Rewrites one task of the file: `change_task("Alike", metric="accuracy")`; None takes the key away."""

    def changed(name: str, /, **changes: Any) -> Path:
        tasks = json.loads(task_file.read_text())
        for task in tasks:
            if task["name"] == name:
                task.update(changes)
                for key in [key for key, value in changes.items() if value is None]:
                    del task[key]
        task_file.write_text(json.dumps(tasks))
        return task_file

    return changed


class WordEncoder:
    """Sums a random vector for each word; `first` or `second` in the prompt makes it look at that word alone."""

    def __init__(self) -> None:
        self.calls: list[tuple[str | None, list[str]]] = []

    def encode(self, inputs: list[str], *, prompt: str | None = None, batch_size: int = 32, **_: Any) -> np.ndarray:
        self.calls.append((prompt, list(inputs)))
        return np.stack([self.vector(text, prompt) for text in inputs])

    def vector(self, text: str, prompt: str | None) -> np.ndarray:
        words = text.split()
        if prompt is not None and "first" in prompt:
            words = words[:1]
        elif prompt is not None and "second" in prompt:
            words = words[1:2]
        total = np.sum([_vector_of(word) for word in words], axis=0) + 0.1 * _vector_of(prompt or "")
        return np.asarray(total / np.linalg.norm(total), dtype=np.float32)


def _vector_of(word: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])
    return np.random.default_rng(seed).standard_normal(24)


@pytest.fixture
def encoder() -> WordEncoder:
    return WordEncoder()
