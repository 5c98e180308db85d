"""Worker that embeds one shard after the other, and the engines that run workers: this process, or Ray actors."""

import dataclasses
import hashlib
import json
import logging
import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from promptembedder.backbone import MAX_BATCH_TOKENS, BatchStats
from promptembedder.batch.embedding_file import (
    WHOLE_VECTORS,
    PassthroughColumn,
    VectorFormat,
    embedding_schema,
    write_embedding_file,
)
from promptembedder.batch.shards import ShardRecord, ShardTask, read_shard_rows
from promptembedder.data import Position, SourceFile, TextColumns
from promptembedder.errors import DataError, ModelFormatError, PromptEmbedderError
from promptembedder.extras import require
from promptembedder.model import PromptEmbedder, model_identity
from promptembedder.storage import MANIFEST_NAME, file_sha256, versions
from promptembedder.storage.atomic import sync_tree
from promptembedder.types import Float

__all__ = ["ShardWorker", "WorkerConfig", "embed_texts", "run_locally", "run_on_ray"]

_LOCAL_STORE_BYTES = 256 << 20  # only tasks and records pass through the object store
_MAX_BLOCKS = 10_000  # blocks of a Ray dataset: each uses memory of the driver


def embed_texts(
    model: PromptEmbedder, texts: list[str], instructions: Sequence[str], *, on_rows: Callable[[int], None]
) -> Float[np.ndarray, "instructions texts dim"]:
    """Compute the vectors of the texts under each instruction, in one pass over the texts if the model allows it."""
    if model.encoder.reads_text_once:
        return model.encode_instructions(texts, instructions, on_texts=on_rows)
    vectors = [model.encode(texts, prompt=instruction, show_progress_bar=False) for instruction in instructions]
    on_rows(len(texts))
    return np.stack(vectors)


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


class ShardWorker:
    """Embeds shards with a model that is loaded once."""

    def __init__(self, config: WorkerConfig) -> None:
        """Load the model.

        Raises:
            ModelFormatError: If the model is not in its folder, is incomplete, or is another model.
            BackboneError: If a backbone is missing.
        """
        problem: str | None = "no model"
        if (config.model / MANIFEST_NAME).is_file():
            identity = model_identity(config.model, reader=config.reader)
            same = config.model_sha256 in (identity.sha256, identity.manifest_sha256)
            problem = None if same else "another model"
        if problem is not None:
            raise ModelFormatError(
                f"a worker on {socket.gethostname()} finds {problem} in {config.model}. "
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
                    values.append(tuple(column.value(scanned.content, location) for column in config.passthrough))
                    ids.append(row.id)
                    texts.append(row.text)
                    continue
                except DataError as error:
                    reason = error
            rejected.append({"source": task.source.location, "row": number + 1, "reason": str(reason)})
        if texts:
            vectors = embed_texts(self._model, texts, list(config.columns.values()), on_rows=on_rows)
        else:
            vectors = np.empty((len(config.columns), 0, encoder.reader.dim), dtype=np.float32)
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
        sync_tree(self._config.output, below=False)
        return name, sha256


def run_locally(
    config: WorkerConfig, tasks: Sequence[ShardTask], *, on_rows: Callable[[int], None] = lambda _: None
) -> Iterator[ShardRecord]:
    """Embed the shards in this process, one after the other.

    Raises:
        PromptEmbedderError: As in `ShardWorker`.
    """
    worker = ShardWorker(config)
    for task in tasks:
        yield worker.embed(task, on_rows=on_rows)


def run_on_ray(config: WorkerConfig, tasks: Sequence[ShardTask], *, workers: int) -> Iterator[ShardRecord]:
    """Embed the shards in Ray Data actors, each with its own copy of the model. Yield records as shards finish.

    Ray is started on this machine, unless the environment variable RAY_ADDRESS names a cluster. The model, the files
    and the output must have the same paths on every worker. Ray restarts an actor that dies and repeats its shard.

    Raises:
        ImportError: If Ray is not installed.
        DataError: If a worker cannot embed a shard.
    """
    ray = require("ray", extra="ray")
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        yield from _run_ray_job(ray, config, tasks, workers)
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(
        "RAY_BACKEND_LOG_LEVEL", "fatal"
    )  # suppresses warnings about actor restarts, which are intended
    options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": _LOCAL_STORE_BYTES}
    ray.init(
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **options,
    )


def _run_ray_job(ray: Any, config: WorkerConfig, tasks: Sequence[ShardTask], workers: int) -> Iterator[ShardRecord]:
    data = require("ray.data", extra="ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    cores, gpus = float(resources.get("CPU", 1)), float(resources.get("GPU", 0))
    share = cores // workers if cores >= workers else cores / workers
    actor_config = dataclasses.replace(config, threads=max(int(share), 1))
    rows = [{"task": json.dumps(dataclasses.asdict(task))} for task in tasks]
    results = data.from_items(rows, override_num_blocks=min(len(tasks), _MAX_BLOCKS)).map(
        _RayWorker,
        fn_constructor_kwargs={"config": actor_config},
        compute=data.ActorPoolStrategy(size=workers),
        num_cpus=share if gpus == 0 else 1,
        num_gpus=1 if gpus >= workers else None,
    )
    for row in results.iter_rows():
        if row["error"]:
            raise DataError(row["error"])
        yield ShardRecord(**json.loads(row["record"]))


class _RayWorker:
    """Work of a Ray actor. Returns a user's errors as text, because Ray would wrap an exception in its own."""

    def __init__(self, *, config: WorkerConfig) -> None:
        self._config = config
        self._worker: ShardWorker | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            if self._worker is None:
                self._worker = ShardWorker(self._config)
            record = self._worker.embed(_deserialize(row["task"]))
        except PromptEmbedderError as error:
            return {"record": "", "error": str(error)}
        return {"record": json.dumps(dataclasses.asdict(record)), "error": ""}


def _deserialize(serialized: str) -> ShardTask:
    fields = json.loads(serialized)
    return ShardTask(
        **{
            **fields,
            "source": SourceFile(**fields["source"]),
            "start": Position(**fields["start"]),
            "columns": TextColumns(**fields["columns"]),
        }
    )
