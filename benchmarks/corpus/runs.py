"""Runs of `promptembedder embed` in separate processes, with a tiny model and a generated corpus."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from promptembedder.backbone import BackboneConfig, quiet_transformers, random_model, random_tokenizer
from promptembedder.batch import ShardFolder
from promptembedder.data import load_docstring_corpus
from promptembedder.errors import DataError
from promptembedder.extras import require
from promptembedder.method import ModelConfig, PrompterConfig
from promptembedder.model import PromptEmbedder
from promptembedder.storage import file_sha256

__all__ = ["EmbedRun", "check_output", "made_corpus", "made_model"]

_POLL_S = 0.01


def made_model(folder: Path) -> Path:
    """Save a model with random weights, small enough to embed a million short rows in minutes."""
    torch.manual_seed(0)
    with quiet_transformers():
        random_model("tiny-qwen3", layers=2, dtype=torch.float32).save_pretrained(folder / "backbone")
    random_tokenizer().save_pretrained(folder / "backbone")
    backbone = BackboneConfig(source=str(folder / "backbone"), dtype="float32")
    config = ModelConfig(prompter=PrompterConfig(backbone=backbone), reader=backbone)
    model = PromptEmbedder.create(config=config, device="cpu")
    model.compile_instructions([config.default_instruction])
    model.save(str(folder / "model"))
    return folder / "model"


def made_corpus(path: Path, rows: int, *, seed: int) -> Path:
    """Write rows of two to five words from Python's documentation, each with an id."""
    texts = [pair.positive for pair in load_docstring_corpus().test]
    words = sorted({word for text in texts for word in text.split() if word.isalpha()})
    draw = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            text = " ".join(draw.choices(words, k=draw.randrange(2, 6)))
            file.write(json.dumps({"id": f"d{number}", "text": text}) + "\n")
    return path


@dataclass
class EmbedRun:
    """Result of one command.

    Attributes:
        seconds: Duration of the command.
        peak_bytes: Peak memory of the command's own process, without workers.
        report: JSON result. None if the command was interrupted or failed.
        complaint: Last line of stderr if the command failed.
    """

    seconds: float
    peak_bytes: int
    report: dict[str, Any] | None
    complaint: str

    @classmethod
    def of(
        cls,
        model: Path,
        corpus: Path,
        output: Path,
        options: Sequence[str] = (),
        *,
        during: Callable[[Any], None] = lambda process: None,
    ) -> "EmbedRun":
        """Run the command.

        Args:
            during: Called every few milliseconds with the process.
        """
        psutil = require("psutil", extra="bench")
        command = [sys.executable, "-m", "promptembedder", "embed", str(model), str(corpus), "-o", str(output)]
        start, peak = time.perf_counter(), 0
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = subprocess.Popen([*command, "--json", *options], stdout=out, stderr=err)
            process = psutil.Process(child.pid)
            while child.poll() is None:
                try:
                    peak = max(peak, process.memory_info().rss)
                    during(process)
                except psutil.Error:  # the process has ended in between
                    continue
                time.sleep(_POLL_S)
            seconds = time.perf_counter() - start
            lines = _lines(out)
            report = json.loads(lines[-1]) if child.returncode == 0 else None
            complaint = "" if report is not None else " ".join(_lines(err)[-1:])
        return cls(seconds=seconds, peak_bytes=peak, report=report, complaint=complaint)


def check_output(output: Path, rows: int) -> dict[str, int]:
    """Count lost rows, duplicate rows, and shards that differ from the manifest.

    Raises:
        DataError: If the folder's manifest cannot be read.
    """
    import pyarrow.parquet as pq

    folder = ShardFolder(output)
    records = [record for _, record in sorted(folder.finished().items())]
    if not records:
        raise DataError(f"{output} holds no finished shard.")
    ids = [name for record in records for name in pq.read_table(output / record.file)["id"].to_pylist()]
    expected = [f"d{number}" for number in range(rows)]
    return {
        "lost": len(set(expected) - set(ids)),
        "doubled": len(ids) - len(set(ids)),
        "out_of_order": int(ids != expected),
        "broken_shards": sum(file_sha256(output / record.file) != record.sha256 for record in records),
        "strays": sum(path.name.startswith(".") for path in output.iterdir()),
    }


def _lines(file: IO[bytes]) -> list[str]:
    file.seek(0)
    return file.read().decode("utf-8", "replace").strip().splitlines()
