"""One shard from task to file: what every engine calls, in whatever process."""

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from promptembedder.batch.embedding_file import embedding_schema, written_embedding_file
from promptembedder.batch.job import embedded
from promptembedder.batch.passthrough import KeptColumn, kept_values
from promptembedder.batch.plan import ShardTask, placed_rows
from promptembedder.batch.shard_folder import ShardRecord, fsync_folder
from promptembedder.errors import DataError, ModelFormatError
from promptembedder.backbone import MAX_BATCH_TOKENS, ReadingCounts
from promptembedder.model import PromptEmbedder
from promptembedder.types import Float
from promptembedder.storage import MANIFEST_NAME, file_sha256, versions

__all__ = ["ShardWorker", "WorkerSettings"]


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """What a worker has to know; small, so that it can be sent to another process.

    Attributes:
        model: Folder of the saved model, the same one for every worker.
        model_sha256: Of the model's manifest.
        columns: The instruction of each column of vectors, by its name.
        with_prompter: False: all instructions are compiled.
        output: Folder of the shards.
        metadata: Of each shard's schema.
        threads: Of torch; None leaves them as they are.
    """

    model: Path
    model_sha256: str
    reader: str | None
    quantization: str | None
    columns: dict[str, str]
    kept: tuple[KeptColumn, ...]
    with_prompter: bool
    output: Path
    metadata: dict[str, str] = field(default_factory=dict)
    max_batch_tokens: int = MAX_BATCH_TOKENS
    threads: int | None = None

    @property
    def instructions_sha256(self) -> str:
        """Of the instructions by column."""
        return hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode()).hexdigest()


class ShardWorker:
    """Embeds shards with a model that it loads once."""

    def __init__(self, settings: WorkerSettings) -> None:
        """Load the model.

        Raises:
            ModelFormatError: The model is not in its folder, or is another one.
            BackboneError: A backbone is missing.
        """
        path = settings.model / MANIFEST_NAME
        if not path.is_file() or file_sha256(path) != settings.model_sha256:
            found = "another model" if path.is_file() else "no model"
            raise ModelFormatError(
                f"a worker on {socket.gethostname()} finds {found} in {settings.model}. "
                "Put the model where every worker finds it under this path."
            )
        if settings.threads is not None:
            import torch

            torch.set_num_threads(settings.threads)
        self._settings = settings
        self._model = PromptEmbedder.from_pretrained(
            settings.model,
            reader=settings.reader,
            quantization=settings.quantization,
            with_prompter=settings.with_prompter,
        )
        self._model.max_batch_tokens = settings.max_batch_tokens
        self._versions = versions()

    def embed(self, task: ShardTask, *, on_rows: Callable[[int], None] = lambda _: None) -> ShardRecord:
        """Embed a shard and put its file in place, safe on the disk.

        The name of the file holds a part of its hash: what another worker writes of the same shard cannot change it.

        Raises:
            DataError: The file cannot be read any more, a vector is not finite, or the disk is full.
        """
        settings, encoder = self._settings, self._model.encoder
        encoder.reading.counts, truncated_before = ReadingCounts(), encoder.truncated_texts
        ids: list[str] = []
        texts: list[str] = []
        kept: list[tuple[object, ...]] = []
        rejected: list[dict[str, object]] = []
        for found, row in placed_rows(task):
            number, reason = found.start.row, row
            if not isinstance(row, DataError) and isinstance(found.content, dict):
                try:
                    place = f"{task.source}, row {number + 1}"
                    kept.append(kept_values(settings.kept, found.content, place))
                    ids.append(row.id)
                    texts.append(row.text)
                    continue
                except DataError as error:
                    reason = error
            rejected.append({"source": task.source.location, "row": number, "reason": str(reason)})
        vectors = self._vectors(texts, on_rows)
        try:
            file, sha256 = self._write_shard(task.number, ids, vectors, list(zip(*kept, strict=True)))
            rejects, rejects_sha256 = self._write_rejects(task.number, rejected) if rejected else (None, None)
        except OSError as error:
            raise DataError(
                f"cannot write {settings.output}: {error}. Free the disk and run the command again."
            ) from error
        truncated, counts = encoder.truncated_texts - truncated_before, encoder.reading.counts
        return ShardRecord(
            shard=task.number,
            file=file,
            sha256=sha256,
            rows=len(ids),
            rejected=len(rejected),
            rejects=rejects,
            rejects_sha256=rejects_sha256,
            source=task.source.location,
            source_sha256=task.source_sha256,
            first_row=task.start.row,
            model_sha256=settings.model_sha256,
            instructions_sha256=settings.instructions_sha256,
            versions=self._versions,
            tokens=counts.tokens,
            padding=counts.padding,
            truncated=truncated if encoder.reads_text_once else truncated // len(settings.columns),
        )

    def _vectors(self, texts: list[str], on_rows: Callable[[int], None]) -> Float[np.ndarray, "instructions texts dim"]:
        if not texts:
            return np.empty((len(self._settings.columns), 0, self._model.encoder.reader.dim), dtype=np.float32)
        return embedded(self._model, texts, list(self._settings.columns.values()), on_rows=on_rows)

    def _write_shard(
        self,
        number: int,
        ids: list[str],
        vectors: Float[np.ndarray, "instructions texts dim"],
        kept: list[tuple[object, ...]],
    ) -> tuple[str, str]:
        fields: list[pa.Field] = [column.field for column in self._settings.kept]
        columns = kept or [()] * len(fields)
        schema = embedding_schema(
            instructions=len(vectors), dim=vectors.shape[-1], metadata=self._settings.metadata, kept=fields
        )

        def write(path: Path) -> None:
            with written_embedding_file(path, schema) as file:
                file.append(ids, vectors, columns)

        return self._placed(f"part-{number:05d}", "parquet", write)

    def _write_rejects(self, number: int, rejected: list[dict[str, object]]) -> tuple[str, str]:
        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
                file.flush()
                os.fsync(file.fileno())

        return self._placed(f"rejected-{number:05d}", "jsonl", write)

    def _placed(self, stem: str, ending: str, write: Callable[[Path], None]) -> tuple[str, str]:
        """Name and sha256 of a file that appears whole."""
        scratch = self._settings.output / f".{stem}.{uuid.uuid4().hex}"
        try:
            write(scratch)
            sha256 = file_sha256(scratch)
            name = f"{stem}-{sha256[:8]}.{ending}"
            scratch.replace(self._settings.output / name)
        finally:
            scratch.unlink(missing_ok=True)
        fsync_folder(self._settings.output)
        return name, sha256
