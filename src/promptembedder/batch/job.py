"""Embedding jobs: text files to one file, or a corpus of any size to a folder of shards that a later run resumes."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from promptembedder.backbone import MAX_BATCH_TOKENS, BatchStats
from promptembedder.batch.embedding_file import (
    FILE_ENDINGS,
    WHOLE_VECTORS,
    PassthroughColumn,
    VectorFormat,
    atomic_embedding_file,
    column_names,
    embedding_schema,
)
from promptembedder.batch.shard_worker import WorkerConfig, embed_texts, run_locally, run_on_ray
from promptembedder.batch.shards import CorpusPlan, ShardFolder, ShardRecord, plan_corpus
from promptembedder.data import TextRow, clean_text, find_sources, read_texts
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.method import ModelConfig
from promptembedder.model import ModelIdentity, PromptEmbedder, manifest_on, model_config, model_identity
from promptembedder.storage import check_writable, file_sha256, lock_directory, read_manifest, versions

__all__ = [
    "CorpusProgress",
    "CorpusReport",
    "EmbedConfig",
    "EmbedReport",
    "JobReport",
    "check_files",
    "embed_corpus",
    "embed_files",
]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Configuration of an embedding job.

    Attributes:
        instructions: Instructions, one vector column each. If empty, the model's default instruction.
        text_column: Column of the text, as in `read_texts`, for each file.
        id_column: Column of the id, as in `read_texts`, for each file. Without ids in a corpus of several files, an id
            is the file's name, a colon and the row's number.
        max_batch_tokens: Maximum number of tokens of a forward pass, padding included.
        overwrite: Replace an existing output.
        vector_format: Dimensions and precision of the stored vectors.
        chunk_rows: Number of rows of one file that are held in memory, batched by length and written as one row group.
        shard_rows: Number of rows per shard, all from one file. An interrupted worker loses at most this many rows.
        passthrough: Columns that are copied to the shards. Each must exist in at least one row.
        reader: Reader that workers load a transferred model with, as backbone string. If None, the reader it opens
            with.
        quantization: Quantization of the workers' reader. If None, that of the training.
        engine: Engine of shards: `local` for this process, `ray` for actors of Ray Data.
        workers: Number of Ray actors.
    """

    instructions: tuple[str, ...] = ()
    text_column: str | None = None
    id_column: str | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    overwrite: bool = False
    vector_format: VectorFormat = WHOLE_VECTORS
    chunk_rows: int = 2048
    shard_rows: int = 4096
    passthrough: tuple[PassthroughColumn, ...] = ()
    reader: str | None = None
    quantization: str | None = None
    engine: str = "local"
    workers: int = 1

    def __post_init__(self) -> None:
        """Validate each value."""
        for name in ("max_batch_tokens", "chunk_rows", "shard_rows", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} must be at least 1, got {getattr(self, name)}. Leave it out for the default."
                )
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine must be local or ray, got {self.engine!r}.")
        if self.engine == "local" and self.workers > 1:
            raise ConfigError(f"the local engine has one worker, got workers {self.workers}. Use the engine ray.")
        normalized = [_normalize_instruction(instruction) for instruction in self.instructions]
        if not all(normalized):
            raise ConfigError("an instruction is blank. Describe the task of the vectors, or leave it out.")
        for kind, names in (("instruction", normalized), ("column", [column.name for column in self.passthrough])):
            duplicate = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if duplicate is not None:
                raise ConfigError(f"the {kind} {duplicate!r} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class JobReport:
    """Result of an embedding job.

    Attributes:
        output: Path of the file, or folder of the shards.
        columns: Instruction of each vector column, by column name.
        rows: Number of rows with vectors.
        truncated: Number of texts longer than the model's maximum, cut off at the end.
        tokens: Number of tokens of the texts after truncation.
        padding_share: Share of padding in all computed tokens, 0..1.
        seconds: Duration in seconds, reading the files included. For one file, without loading the model.
    """

    output: Path
    columns: dict[str, str]
    rows: int
    truncated: int
    tokens: int
    padding_share: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class EmbedReport(JobReport):
    """Result of a job with one output file. `dim` is the number of dimensions of the stored vectors."""

    dim: int

    @property
    def rows_per_second(self) -> float:
        """Throughput in rows per second."""
        return self.rows / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Throughput in tokens per second, without padding."""
        return self.tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class CorpusReport(JobReport):
    """Result of a sharded job. Counts cover the complete corpus unless they name this run.

    Attributes:
        shards: Number of shards.
        skipped_shards: Number of shards that an earlier run finished.
        rejected: Number of invalid rows. The `rejected-*.jsonl` files in the output contain the reasons.
        embedded_rows: Number of rows that this run embedded.
        embedded_tokens: Number of tokens that this run embedded.
        embedding_seconds: Duration of this run in seconds after planning, loading the model included.
    """

    shards: int
    skipped_shards: int
    rejected: int
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


def check_files(files: Sequence[Path], output: Path, *, config: EmbedConfig) -> None:
    """Check the files and the output of `embed_files` before a model is loaded.

    Raises:
        DataError: If there is no file, a file is missing, empty or lacks a column in its first row, or the output
            exists and must not be overwritten, is one of the files, or has an unknown ending.
        SaveError: If the output cannot be written.
    """
    if not files:
        raise DataError("there are no files to embed. Name at least one.")
    if output.suffix not in FILE_ENDINGS:
        raise DataError(f"{output} does not end in {', '.join(FILE_ENDINGS)}, the formats of files. Rename the output.")
    if output.is_dir():
        raise DataError(f"{output} is a folder. Name a file in it.")
    if output.resolve() in {path.resolve() for path in files}:
        raise DataError(f"{output} is both a file to embed and the output. Name another output.")
    if output.exists() and not config.overwrite:
        raise DataError(f"{output} exists. Name another output, or pass --overwrite.")
    check_writable(output)
    for path in files:
        rows = _read_rows(path, config)
        if path.is_file():  # a pipe can be read only once
            next(rows)


def embed_files(
    model: PromptEmbedder,
    files: Sequence[Path],
    output: Path,
    *,
    config: EmbedConfig,
    model_name: str | None = None,
    identity: ModelIdentity | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> EmbedReport:
    """Embed the texts of `files`, in their order, into the file `output`.

    A Parquet or JSONL file has the column `id` and, for each instruction, a column of vectors. The metadata of a
    Parquet schema contains the model, instructions, files and library versions. An NPY file contains the vectors alone.
    The output is written atomically.

    Args:
        model_name: Name of the model for the metadata. If None, left out.
        identity: Identity of the saved model for the metadata. If None, left out.
        on_rows: Called after each batch with the number of its rows.

    Raises:
        DataError: As in `check_files` and `read_texts`; or if a vector is not finite.
        ConfigError: If the model truncates its vectors or has fewer dimensions than the format, or if an instruction
            needs a prompter that is not loaded.
    """
    check_files(files, output, config=config)
    _check_dimensions(model, config.vector_format)
    start, truncated_before = time.perf_counter(), model.encoder.truncated_texts
    model.max_batch_tokens, model.encoder.reading.counts = config.max_batch_tokens, BatchStats()
    columns, dim = _columns(config, model.encoder.config), model.encoder.reader.dim
    metadata = _metadata(columns, config.vector_format, model.encoder.max_seq_length)
    metadata |= _file_metadata(model, files, config.vector_format, model_name, identity)
    rows, seen = 0, set[int]()
    schema = embedding_schema(instructions=len(columns), dim=dim, metadata=metadata, vector_format=config.vector_format)
    with atomic_embedding_file(output, schema, config.vector_format) as file:
        texts = chain.from_iterable(_read_rows(path, config) for path in files)
        while chunk := list(islice(texts, config.chunk_rows)):
            vectors = embed_texts(model, [row.text for row in chunk], list(columns.values()), on_rows=on_rows)
            file.append([row.id for row in chunk], vectors)
            rows += len(chunk)
            seen.update(hash(row.id) for row in chunk)
    if repeated := rows - len(seen):
        _logger.warning(
            "%d of %d rows have an id that came before. Name an id column with distinct ids", repeated, rows
        )
    truncated, counts = model.encoder.truncated_texts - truncated_before, model.encoder.reading.counts
    return EmbedReport(
        output=output,
        rows=rows,
        dim=config.vector_format.dimensions or dim,
        columns=columns,
        truncated=truncated if model.encoder.reads_text_once else truncated // len(columns),
        tokens=counts.tokens,
        padding_share=counts.padding_share,
        seconds=time.perf_counter() - start,
    )


def _check_dimensions(model: PromptEmbedder, vector_format: VectorFormat) -> None:
    if model.truncate_dim is not None:
        raise ConfigError(
            f"vectors cut to {model.truncate_dim} dimensions do not have length 1. Set truncate_dim to None, "
            "and the dimensions in vector_format."
        )
    vector_format.check(model.encoder.reader.dim)


def embed_corpus(
    model: Path,
    files: Sequence[str | Path],
    output: Path,
    *,
    config: EmbedConfig,
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
        plan = plan_corpus(
            sources,
            shard_rows=config.shard_rows,
            text_column=config.text_column,
            id_column=config.id_column,
            passthrough=[column.name for column in config.passthrough],
        )
        folder = ShardFolder(output)
        # a folder of an earlier version identifies the model by the hash of its manifest: resume it under that hash
        by_manifest = not config.overwrite and folder.model_sha256() == identity.manifest_sha256
        worker = _worker_config(model, identity, output, config, by_manifest=by_manifest)
        folder.begin(_job(plan, worker, config), overwrite=config.overwrite)
        records = {number: record for number, record in folder.finished().items() if folder.is_intact(record)}
        folder.prune(records)
        skipped, planned = set(records), time.perf_counter()
        for record in _embed_missing(plan, skipped, worker, config, on_progress):
            folder.add(record)
            records[record.shard] = record
        folder.prune(records)  # sorts the manifest and deletes the files of dead workers
    return _report(output, worker, records, skipped, start=start, planned=planned)


def _embed_missing(
    plan: CorpusPlan,
    finished: Set[int],
    worker: WorkerConfig,
    config: EmbedConfig,
    on_progress: Callable[[CorpusProgress], None],
) -> Iterator[ShardRecord]:
    """Embed the shards that are not finished. Yield their records as they finish."""
    pending = {task.number: task for task in plan.tasks if task.number not in finished}
    rows, tokens = plan.rows - sum(task.rows for task in pending.values()), 0
    shard_rows = 0  # processed rows of the current shard

    def on_rows(count: int) -> None:
        nonlocal shard_rows
        shard_rows += count
        on_progress(CorpusProgress(rows=rows + shard_rows, total_rows=plan.rows, tokens=tokens))

    on_rows(0)
    if not pending:
        return
    if config.engine == "local":
        records = run_locally(worker, list(pending.values()), on_rows=on_rows)
    else:
        records = run_on_ray(worker, list(pending.values()), workers=config.workers)
    for record in records:
        yield record
        rows, tokens, shard_rows = rows + pending[record.shard].rows, tokens + record.tokens, 0
        on_rows(0)


def _worker_config(
    model: Path, identity: ModelIdentity, output: Path, config: EmbedConfig, *, by_manifest: bool
) -> WorkerConfig:
    manifest = manifest_on(read_manifest(model), config.reader, model)
    trained = model_config(manifest)
    columns = _columns(config, trained)
    sha256 = identity.manifest_sha256 if by_manifest else identity.sha256
    metadata = _metadata(columns, config.vector_format, trained.max_seq_length) | {
        "model": str(model) if config.reader is None else f"{model} on {config.reader}",
        "model_sha256": sha256,
        "manifest_sha256": identity.manifest_sha256,
        "reader": identity.reader,
    }
    return WorkerConfig(
        model=model.resolve(),
        model_sha256=sha256,
        reader=config.reader,
        quantization=config.quantization,
        columns=columns,
        passthrough=config.passthrough,
        with_prompter=not set(columns.values()) <= set(manifest.instructions),
        output=output.resolve(),
        metadata=metadata,
        max_batch_tokens=config.max_batch_tokens,
        vector_format=config.vector_format,
    )


def _job(plan: CorpusPlan, worker: WorkerConfig, config: EmbedConfig) -> dict[str, Any]:
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
    records: Mapping[int, ShardRecord],
    skipped: Set[int],
    *,
    start: float,
    planned: float,
) -> CorpusReport:
    complete = list(records.values())
    new = [record for record in complete if record.shard not in skipped]
    if not any(record.rows for record in complete):
        raise DataError(f"no row of the corpus is valid. See {output}/rejected-*.jsonl for the reasons.")
    tokens, padding = sum(record.tokens for record in complete), sum(record.padding for record in complete)
    end = time.perf_counter()
    return CorpusReport(
        output=output,
        columns=worker.columns,
        shards=len(complete),
        skipped_shards=len(skipped),
        rows=sum(record.rows for record in complete),
        rejected=sum(record.rejected for record in complete),
        truncated=sum(record.truncated for record in complete),
        tokens=tokens,
        padding_share=padding / max(tokens + padding, 1),
        seconds=end - start,
        embedded_rows=sum(record.rows for record in new),
        embedded_tokens=sum(record.tokens for record in new),
        embedding_seconds=end - planned,
    )


def _read_rows(path: Path, config: EmbedConfig) -> Iterator[TextRow]:
    return read_texts(path, text_column=config.text_column, id_column=config.id_column)


def _normalize_instruction(instruction: str) -> str:
    """Clean the instruction and strip surrounding blanks, as the model does."""
    return clean_text(instruction).strip()


def _columns(config: EmbedConfig, trained: ModelConfig) -> dict[str, str]:
    """Map the vector columns to their instructions."""
    instructions = [_normalize_instruction(text) for text in config.instructions] or [trained.default_instruction]
    return dict(zip(column_names(len(instructions)), instructions, strict=True))


def _metadata(columns: Mapping[str, str], vector_format: VectorFormat, max_seq_length: int) -> dict[str, str]:
    """Describe the vectors for the metadata of a schema."""
    return {
        "columns": json.dumps(columns, ensure_ascii=False),
        "normalised": "true" if vector_format.precision == "float32" else "false",
        "max_seq_length": str(max_seq_length),
        "versions": json.dumps(versions()),
    }


def _file_metadata(
    model: PromptEmbedder,
    files: Sequence[Path],
    vector_format: VectorFormat,
    model_name: str | None,
    identity: ModelIdentity | None,
) -> dict[str, str]:
    """Describe the model and the files of a job with one output file."""
    # a pipe can be read only once
    sources = [{"name": path.name, "sha256": file_sha256(path) if path.is_file() else None} for path in files]
    known = {
        "model": model_name,
        "model_sha256": None if identity is None else identity.sha256,
        "manifest_sha256": None if identity is None else identity.manifest_sha256,
        "reader": model.encoder.reader.identity.source,
        "files": json.dumps(sources, ensure_ascii=False),
        "dim": str(vector_format.dimensions or model.encoder.reader.dim),
        "precision": None if vector_format.precision == "float32" else vector_format.precision,
    }
    return {key: value for key, value in known.items() if value is not None}
