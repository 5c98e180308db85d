"""Worker that embeds one shard after the other, in the process of any engine."""

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

from promptembedder.backbone import MAX_BATCH_TOKENS, BatchStats
from promptembedder.batch.embedding_file import embedding_schema, write_embedding_file
from promptembedder.batch.job import embed_texts
from promptembedder.batch.passthrough import PassthroughColumn, passthrough_values
from promptembedder.batch.plan import ShardTask, read_shard_rows
from promptembedder.batch.shard_folder import ShardRecord, fsync_folder
from promptembedder.batch.vector_format import WHOLE_VECTORS, VectorFormat
from promptembedder.errors import DataError, ModelFormatError
from promptembedder.model import PromptEmbedder, model_identity
from promptembedder.storage import MANIFEST_NAME, file_sha256, versions
from promptembedder.types import Float

__all__ = ["ShardWorker", "WorkerConfig"]


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """Configuration of a worker. Small enough to send to another process.

    Attributes:
        model: Folder of the saved model, with the same path for every worker.
        model_sha256: Identity of the model, or the hash of its manifest for a folder of an earlier version.
        reader: Reader to load the model with. If None, the reader it opens with.
        quantization: Quantization of the reader. If None, that of the training.
        columns: Instruction of each vector column, by column name.
        passthrough: Columns that are copied to the output.
        with_prompter: Load the prompter. Not needed if all instructions are compiled.
        output: Folder of the shards.
        metadata: Metadata of each shard's schema.
        max_batch_tokens: Maximum number of tokens of a forward pass, padding included.
        vector_format: Dimensions and precision of the stored vectors.
        threads: Number of torch threads. If None, torch's default.
    """

    model: Path
    model_sha256: str
    reader: str | None
    quantization: str | None
    columns: dict[str, str]
    passthrough: tuple[PassthroughColumn, ...]
    with_prompter: bool
    output: Path
    metadata: dict[str, str] = field(default_factory=dict)
    max_batch_tokens: int = MAX_BATCH_TOKENS
    vector_format: VectorFormat = WHOLE_VECTORS
    threads: int | None = None

    @property
    def instructions_sha256(self) -> str:
        """Hash of the instruction of each vector column."""
        return hashlib.sha256(json.dumps(self.columns, sort_keys=True).encode()).hexdigest()


def _is_expected_model(config: WorkerConfig) -> bool:
    if not (config.model / MANIFEST_NAME).is_file():
        return False
    identity = model_identity(config.model, reader=config.reader)
    return config.model_sha256 in (identity.sha256, identity.manifest_sha256)


class ShardWorker:
    """Embeds shards with a model that is loaded once."""

    def __init__(self, config: WorkerConfig) -> None:
        """Load the model.

        Raises:
            ModelFormatError: If the model is not in its folder, is incomplete, or is another model.
            BackboneError: If a backbone is missing.
        """
        if not _is_expected_model(config):
            content = "another model" if (config.model / MANIFEST_NAME).is_file() else "no model"
            raise ModelFormatError(
                f"a worker on {socket.gethostname()} finds {content} in {config.model}. "
                "Copy the model to this path on every worker."
            )
        if config.threads is not None:
            import torch

            torch.set_num_threads(config.threads)
        self._config = config
        self._model = PromptEmbedder.from_pretrained(
            config.model,
            reader=config.reader,
            quantization=config.quantization,
            with_prompter=config.with_prompter,
        )
        config.vector_format.check(self._model.encoder.reader.dim)
        self._model.max_batch_tokens = config.max_batch_tokens
        self._versions = versions()

    def embed(self, task: ShardTask, *, on_rows: Callable[[int], None] = lambda _: None) -> ShardRecord:
        """Embed a shard and write its file, flushed to the disk.

        The file's name contains a part of its hash, so that another worker with the same shard cannot overwrite it.

        Raises:
            DataError: If the source cannot be read, a vector is not finite, or the disk is full.
        """
        config, encoder = self._config, self._model.encoder
        encoder.reading.counts, truncated_before = BatchStats(), encoder.truncated_texts
        ids: list[str] = []
        texts: list[str] = []
        values: list[tuple[object, ...]] = []
        rejected: list[dict[str, object]] = []
        for scanned, row in read_shard_rows(task):
            number, reason = scanned.start.row, row
            if not isinstance(row, DataError) and isinstance(scanned.content, dict):
                try:
                    location = f"{task.source}, row {number + 1}"
                    values.append(passthrough_values(config.passthrough, scanned.content, location))
                    ids.append(row.id)
                    texts.append(row.text)
                    continue
                except DataError as error:
                    reason = error
            rejected.append({"source": task.source.location, "row": number + 1, "reason": str(reason)})
        vectors = self._embed_texts(texts, on_rows)
        try:
            file, sha256 = self._write_shard(task.number, ids, vectors, list(zip(*values, strict=True)))
            rejects, rejects_sha256 = self._write_rejects(task.number, rejected) if rejected else (None, None)
        except OSError as error:
            raise DataError(
                f"cannot write {config.output}: {error}. Free the disk and run the command again."
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
            model_sha256=config.model_sha256,
            instructions_sha256=config.instructions_sha256,
            versions=self._versions,
            tokens=counts.tokens,
            padding=counts.padding,
            truncated=truncated if encoder.reads_text_once else truncated // len(config.columns),
        )

    def _embed_texts(
        self, texts: list[str], on_rows: Callable[[int], None]
    ) -> Float[np.ndarray, "instructions texts dim"]:
        if not texts:
            return np.empty((len(self._config.columns), 0, self._model.encoder.reader.dim), dtype=np.float32)
        return embed_texts(self._model, texts, list(self._config.columns.values()), on_rows=on_rows)

    def _write_shard(
        self,
        number: int,
        ids: list[str],
        vectors: Float[np.ndarray, "instructions texts dim"],
        values: list[tuple[object, ...]],
    ) -> tuple[str, str]:
        fields: list[pa.Field] = [column.field for column in self._config.passthrough]
        columns = values or [()] * len(fields)
        vector_format = self._config.vector_format
        schema = embedding_schema(
            instructions=len(vectors),
            dim=vectors.shape[-1],
            metadata=self._config.metadata,
            passthrough=fields,
            vector_format=vector_format,
        )

        def write(path: Path) -> None:
            with write_embedding_file(path, schema, vector_format) as file:
                file.append(ids, vectors, columns)

        return self._write_atomically(f"part-{number:05d}", "parquet", write)

    def _write_rejects(self, number: int, rejected: list[dict[str, object]]) -> tuple[str, str]:
        def write(path: Path) -> None:
            with path.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rejected)
                file.flush()
                os.fsync(file.fileno())

        return self._write_atomically(f"rejected-{number:05d}", "jsonl", write)

    def _write_atomically(self, stem: str, ending: str, write: Callable[[Path], None]) -> tuple[str, str]:
        """Write a file atomically and return its name and sha256."""
        scratch = self._config.output / f".{stem}.{uuid.uuid4().hex}"
        try:
            write(scratch)
            sha256 = file_sha256(scratch)
            name = f"{stem}-{sha256[:8]}.{ending}"
            scratch.replace(self._config.output / name)
        finally:
            scratch.unlink(missing_ok=True)
        fsync_folder(self._config.output)
        return name, sha256
