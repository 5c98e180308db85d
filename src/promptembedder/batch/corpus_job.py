"""Sharded embedding job: from a corpus of any size to a folder of shards, resumable after interruption."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.backbone import MAX_BATCH_TOKENS
from promptembedder.batch.embedding_file import column_names
from promptembedder.batch.engines import run_locally, run_on_ray
from promptembedder.batch.job import normalize_instruction
from promptembedder.batch.passthrough import PassthroughColumn
from promptembedder.batch.plan import CorpusPlan, ShardTask, plan_corpus
from promptembedder.batch.shard_folder import ShardFolder, ShardRecord
from promptembedder.batch.shard_worker import WorkerConfig
from promptembedder.batch.vector_format import WHOLE_VECTORS, VectorFormat
from promptembedder.data import SourceFile, find_sources
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.model import ModelIdentity, manifest_on, model_config, model_identity
from promptembedder.storage import lock_directory, read_manifest, versions

__all__ = ["CorpusConfig", "CorpusProgress", "CorpusReport", "embed_corpus"]


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Configuration of a sharded embedding job.

    Attributes:
        instructions: Instructions, one vector column each. If empty, the model's default instruction.
        text_column: Column of the text, as in `read_texts`, for each file.
        id_column: Column of the id, as in `read_texts`, for each file. Without ids in a corpus of several files, an id
            is the file's name, a colon and the row's number.
        passthrough: Columns that are copied to the output. Each must exist in at least one row.
        reader: Reader to load a transferred model with, as backbone string. If None, the reader it opens with.
        quantization: Quantization of the reader. If None, that of the training.
        max_batch_tokens: Maximum number of tokens of a forward pass, padding included.
        shard_rows: Number of rows per shard, all from one file. An interrupted worker loses at most this many rows.
        engine: `local` for this process, `ray` for actors of Ray Data.
        workers: Number of Ray actors.
        overwrite: Replace the shards of another job.
        vector_format: Dimensions and precision of the stored vectors.
    """

    instructions: tuple[str, ...] = ()
    text_column: str | None = None
    id_column: str | None = None
    passthrough: tuple[PassthroughColumn, ...] = ()
    reader: str | None = None
    quantization: str | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    shard_rows: int = 4096
    engine: str = "local"
    workers: int = 1
    overwrite: bool = False
    vector_format: VectorFormat = WHOLE_VECTORS

    def __post_init__(self) -> None:
        """Validate each value."""
        for name in ("max_batch_tokens", "shard_rows", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1, got {getattr(self, name)}. Leave it out for the default."
                )
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine must be local or ray, got {self.engine!r}.")
        if self.engine == "local" and self.workers > 1:
            raise ConfigError(f"the local engine has one worker, got workers {self.workers}. Use the engine ray.")
        normalized = [normalize_instruction(instruction) for instruction in self.instructions]
        if not all(normalized):
            raise ConfigError("an instruction is blank. Describe the task of the vectors, or leave it out.")
        for kind, names in (("instruction", normalized), ("column", [column.name for column in self.passthrough])):
            duplicate = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if duplicate is not None:
                raise ConfigError(f"the {kind} {duplicate!r} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """Result of a sharded job. Counts cover the complete corpus unless they name this run.

    Attributes:
        output: Folder of the shards.
        columns: Instruction of each vector column, by column name.
        shards: Number of shards.
        skipped_shards: Number of shards that an earlier run finished.
        rows: Number of rows with vectors.
        rejected: Number of invalid rows. The `rejected-*.jsonl` files in the output contain the reasons.
        truncated: Number of texts longer than the model's maximum, cut off at the end.
        tokens: Number of tokens of the texts after truncation.
        padding_share: Share of padding in all computed tokens, 0..1.
        seconds: Duration of this run in seconds, reading the files included.
        embedded_rows: Number of rows that this run embedded.
        embedded_tokens: Number of tokens that this run embedded.
        embedding_seconds: Duration of this run in seconds after planning, loading the model included.
    """

    output: Path
    columns: dict[str, str]
    shards: int
    skipped_shards: int
    rows: int
    rejected: int
    truncated: int
    tokens: int
    padding_share: float
    seconds: float
    embedded_rows: int
    embedded_tokens: int
    embedding_seconds: float


@dataclass(frozen=True, kw_only=True)
class CorpusProgress:
    """Progress of a sharded job.

    Attributes:
        rows: Number of processed rows in all runs. With the local engine, rows of the current shard included.
        total_rows: Number of rows in the corpus.
        tokens: Number of tokens in the shards that this run has finished.
    """

    rows: int
    total_rows: int
    tokens: int


def embed_corpus(
    model: Path,
    files: Sequence[str | Path],
    output: Path,
    *,
    config: CorpusConfig,
    on_progress: Callable[[CorpusProgress], None] = lambda _: None,
) -> CorpusReport:
    """Embed the texts of `files` (paths, folders, globs, URLs) into shards in the folder `output`.

    A shard is a Parquet file with the column `id`, one vector column per instruction, and the passthrough columns. Its
    line in `manifest.jsonl` contains its row range, source, model and hash. Shards and their rows are in the order of
    the corpus. The same call resumes an interrupted job.

    Raises:
        DataError: If a file cannot be read, an id is repeated, a passthrough column exists in no row, `output` belongs
            to another job, or the disk is full.
        ConfigError: If another process is running the job.
        ModelFormatError: If the model is incomplete, or a worker finds another model in its folder.
        ImportError: If the engine is not installed.
    """
    if config.engine == "ray":
        require("ray.data", extra="ray")
    start = time.perf_counter()
    identity = model_identity(model, reader=config.reader)
    sources = find_sources(files)
    with lock_directory(output):
        plan = _plan(sources, config)
        folder = ShardFolder(output)
        # a folder of an earlier version identifies the model by the hash of its manifest: resume it under that hash
        by_manifest = not config.overwrite and folder.model_sha256() == identity.manifest_sha256
        worker = _worker_config(model, identity, output, config, by_manifest=by_manifest)
        folder.begin(_job(plan, worker, config), overwrite=config.overwrite)
        records = {number: record for number, record in folder.finished().items() if folder.is_intact(record)}
        folder.prune(records)
        skipped = len(records)
        pending = [task for task in plan.tasks if task.number not in records]
        planned = time.perf_counter()
        rows, tokens = sum(task.rows for task in plan.tasks if task.number in records), 0
        shard_rows = 0  # processed rows of the current shard

        def on_rows(count: int) -> None:
            nonlocal shard_rows
            shard_rows += count
            on_progress(CorpusProgress(rows=rows + shard_rows, total_rows=plan.rows, tokens=tokens))

        on_rows(0)
        task_rows = {task.number: task.rows for task in pending}
        new_records: list[ShardRecord] = []
        for record in _embed_shards(worker, pending, config, on_rows):
            folder.add(record)
            records[record.shard] = record
            new_records.append(record)
            rows, tokens, shard_rows = rows + task_rows[record.shard], tokens + record.tokens, 0
            on_rows(0)
        folder.prune(records)  # sorts the manifest and deletes the files of dead workers
    return _report(output, worker, records, new_records, skipped=skipped, start=start, planned=planned)


def _plan(sources: Sequence[SourceFile], config: CorpusConfig) -> CorpusPlan:
    return plan_corpus(
        sources,
        shard_rows=config.shard_rows,
        text_column=config.text_column,
        id_column=config.id_column,
        passthrough=[column.name for column in config.passthrough],
    )


def _embed_shards(
    worker: WorkerConfig, tasks: list[ShardTask], config: CorpusConfig, on_rows: Callable[[int], None]
) -> Iterator[ShardRecord]:
    if not tasks:
        return iter(())
    if config.engine == "local":
        return run_locally(worker, tasks, on_rows=on_rows)
    return run_on_ray(worker, tasks, workers=config.workers)


def _worker_config(
    model: Path, identity: ModelIdentity, output: Path, config: CorpusConfig, *, by_manifest: bool
) -> WorkerConfig:
    manifest = manifest_on(read_manifest(model), config.reader, model)
    trained = model_config(manifest)
    instructions = [normalize_instruction(text) for text in config.instructions] or [trained.default_instruction]
    columns = dict(zip(column_names(len(instructions)), instructions, strict=True))
    sha256 = identity.manifest_sha256 if by_manifest else identity.sha256
    metadata = {
        "model": str(model) if config.reader is None else f"{model} on {config.reader}",
        "model_sha256": sha256,
        "manifest_sha256": identity.manifest_sha256,
        "reader": identity.reader,
        "columns": json.dumps(columns, ensure_ascii=False),
        "normalised": "true" if config.vector_format.precision == "float32" else "false",
        "max_seq_length": str(trained.max_seq_length),
        "versions": json.dumps(versions()),
    }
    return WorkerConfig(
        model=model.resolve(),
        model_sha256=sha256,
        reader=config.reader,
        quantization=config.quantization,
        columns=columns,
        passthrough=config.passthrough,
        with_prompter=not set(instructions) <= set(manifest.instructions),
        output=output.resolve(),
        metadata=metadata,
        max_batch_tokens=config.max_batch_tokens,
        vector_format=config.vector_format,
    )


def _job(plan: CorpusPlan, worker: WorkerConfig, config: CorpusConfig) -> dict[str, Any]:
    """Describe the job for `job.json`: a resumed job must have the same values. Batch size and engine may differ."""
    job = {
        "model_sha256": worker.model_sha256,
        "reader": worker.reader,
        "quantization": worker.quantization,
        "columns": worker.columns,
        "kept": [[column.name, column.type] for column in worker.passthrough],
        "text_column": config.text_column,
        "id_column": config.id_column,
        "shard_rows": config.shard_rows,
        # None by default, as in the jobs of earlier versions
        "dimensions": config.vector_format.dimensions,
        "precision": None if config.vector_format.precision == "float32" else config.vector_format.precision,
        "inputs": [list(each) for each in plan.inputs],
    }
    serializable: dict[str, Any] = json.loads(json.dumps(job))
    return serializable


def _report(
    output: Path,
    worker: WorkerConfig,
    records: dict[int, ShardRecord],
    new_records: Sequence[ShardRecord],
    *,
    skipped: int,
    start: float,
    planned: float,
) -> CorpusReport:
    all_records = list(records.values())
    if not any(record.rows for record in all_records):
        raise DataError(f"no row of the corpus is valid. See {output}/rejected-*.jsonl for the reasons.")
    tokens, padding = sum(record.tokens for record in all_records), sum(record.padding for record in all_records)
    end = time.perf_counter()
    return CorpusReport(
        output=output,
        columns=worker.columns,
        shards=len(all_records),
        skipped_shards=skipped,
        rows=sum(record.rows for record in all_records),
        rejected=sum(record.rejected for record in all_records),
        truncated=sum(record.truncated for record in all_records),
        tokens=tokens,
        padding_share=padding / max(tokens + padding, 1),
        seconds=end - start,
        embedded_rows=sum(record.rows for record in new_records),
        embedded_tokens=sum(record.tokens for record in new_records),
        embedding_seconds=end - planned,
    )
