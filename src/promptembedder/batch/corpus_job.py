"""The sharded embedding job: a corpus of any size in, a folder of shards out, resumed by the same command."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptembedder.batch.embedding_file import column_names
from promptembedder.batch.engines import local_records, ray_records
from promptembedder.batch.job import normal
from promptembedder.batch.passthrough import KeptColumn
from promptembedder.batch.plan import CorpusPlan, ShardTask, plan_corpus
from promptembedder.batch.shard_folder import ShardFolder, ShardRecord
from promptembedder.batch.shard_worker import WorkerSettings
from promptembedder.data import find_sources
from promptembedder.errors import ConfigError, DataError
from promptembedder.extras import require
from promptembedder.backbone import MAX_BATCH_TOKENS
from promptembedder.model import manifest_on, model_config
from promptembedder.storage import MANIFEST_NAME, file_sha256, owned_folder, read_manifest, versions

__all__ = ["CorpusProgress", "CorpusReport", "CorpusSettings", "embed_corpus"]


@dataclass(frozen=True, kw_only=True)
class CorpusSettings:
    """How a corpus is embedded.

    Attributes:
        instructions: Each gets its own column of vectors; none stands for the model's default instruction.
        text_column: As in `read_texts`, for each file.
        id_column: As in `read_texts`, for each file. Without one, in a corpus of several files, an id is the file's
            name, a colon and the row's number.
        kept: Columns that are written beside the vectors.
        reader: Of a model that was moved: the LLM to open it on.
        quantization: Of the reader.
        max_batch_tokens: Tokens of texts read by a model at once, padding included.
        shard_rows: Of a shard, rows of one file; what a worker loses when it is killed.
        engine: `local`: this process. `ray`: actors of Ray Data.
        workers: Actors.
        overwrite: Replace the shards of another job.
    """

    instructions: tuple[str, ...] = ()
    text_column: str | None = None
    id_column: str | None = None
    kept: tuple[KeptColumn, ...] = ()
    reader: str | None = None
    quantization: str | None = None
    max_batch_tokens: int = MAX_BATCH_TOKENS
    shard_rows: int = 4096
    engine: str = "local"
    workers: int = 1
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Check each value at the door."""
        for name in ("max_batch_tokens", "shard_rows", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.engine not in ("local", "ray"):
            raise ConfigError(f"engine must be local or ray, got {self.engine!r}.")
        if self.engine == "local" and self.workers > 1:
            raise ConfigError(f"the local engine is one worker, got workers {self.workers}. Use the engine ray.")
        asked = [normal(instruction) for instruction in self.instructions]
        if not all(asked):
            raise ConfigError("an instruction is blank. Say in words what the vectors are for, or leave it out.")
        for kind, names in (("instruction", asked), ("column", [column.name for column in self.kept])):
            twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
            if twice is not None:
                raise ConfigError(f"the {kind} {twice!r} is given twice. Give it once.")


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """What a sharded job did; counts are of the whole corpus, but for those of this run.

    Attributes:
        columns: The instruction of each column of vectors, by its name.
        rows: With vectors.
        rejected: Rows that could not be used; files beside the shards say why.
        truncated: Texts that were longer than the model reads and lost their end.
        padding_share: Of all tokens computed, 0..1.
        skipped_shards: Finished by an earlier run.
        seconds: Of this run, from reading the first file on.
        embedded_rows: By this run.
        embedded_tokens: By this run.
        embedding_seconds: Of this run, from the plan's end on, loading of models included.
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
    """How far a job is.

    Attributes:
        rows: Gone through, in all runs; by the local engine those of the shard at hand, too.
        of_rows: In the corpus.
        tokens: Of the shards that this run has finished.
    """

    rows: int
    of_rows: int
    tokens: int


def embed_corpus(
    model: Path,
    files: Sequence[str | Path],
    output: Path,
    *,
    settings: CorpusSettings,
    on_progress: Callable[[CorpusProgress], None] = lambda _: None,
) -> CorpusReport:
    """Embed the texts of `files` (paths, folders, globs, URLs) into shards in the folder `output`.

    A shard is a Parquet file with the column `id`, one of vectors for each instruction, and the kept columns; a line
    of `manifest.jsonl` says what is in it, from what it was made, and its hash. The order of the shards and of their
    rows is the corpus'. Run again, the job goes on where it ended, however it ended.

    Raises:
        DataError: Files cannot be read, an id comes twice, `output` is another job's, or the disk is full.
        ConfigError: Another process runs the job.
        ModelFormatError: The model cannot be read by a worker.
        ImportError: The engine is not installed.
    """
    if settings.engine == "ray":
        require("ray.data", extra="ray")
    start = time.perf_counter()
    worker = _worker_settings(model, output, settings)
    sources = find_sources(files)
    with owned_folder(output):
        plan = plan_corpus(
            sources,
            shard_rows=settings.shard_rows,
            text_column=settings.text_column,
            id_column=settings.id_column,
        )
        folder = ShardFolder(output)
        folder.begin(_job(plan, worker, settings), overwrite=settings.overwrite)
        records = {number: record for number, record in folder.finished().items() if folder.is_whole(record)}
        folder.keep_only(records)
        skipped = len(records)
        waiting = [task for task in plan.tasks if task.number not in records]
        planned = time.perf_counter()
        rows, tokens = sum(task.rows for task in plan.tasks if task.number in records), 0
        begun = 0  # rows of the shard that this process is at

        def on_rows(count: int) -> None:
            nonlocal begun
            begun += count
            on_progress(CorpusProgress(rows=rows + begun, of_rows=plan.rows, tokens=tokens))

        on_rows(0)
        of_task = {task.number: task.rows for task in waiting}
        made: list[ShardRecord] = []
        for record in _records(worker, waiting, settings, on_rows):
            folder.add(record)
            records[record.shard] = record
            made.append(record)
            rows, tokens, begun = rows + of_task[record.shard], tokens + record.tokens, 0
            on_rows(0)
        folder.keep_only(records)  # in order, and without what dead workers left behind
    return _report(output, worker, records, made, skipped=skipped, start=start, planned=planned)


def _records(
    worker: WorkerSettings, tasks: list[ShardTask], settings: CorpusSettings, on_rows: Callable[[int], None]
) -> Iterator[ShardRecord]:
    if not tasks:
        return iter(())
    if settings.engine == "local":
        return local_records(worker, tasks, on_rows=on_rows)
    return ray_records(worker, tasks, workers=settings.workers)


def _worker_settings(model: Path, output: Path, settings: CorpusSettings) -> WorkerSettings:
    manifest = manifest_on(read_manifest(model), settings.reader, model)
    config = model_config(manifest)
    instructions = [normal(text) for text in settings.instructions] or [config.default_instruction]
    columns = dict(zip(column_names(len(instructions)), instructions, strict=True))
    sha256 = file_sha256(model / MANIFEST_NAME)
    metadata = {
        "model": str(model) if settings.reader is None else f"{model} on {settings.reader}",
        "model_sha256": sha256,
        "reader": str(manifest.backbones["reader"]["source"]),
        "columns": json.dumps(columns, ensure_ascii=False),
        "normalised": "true",
        "max_seq_length": str(config.max_seq_length),
        "versions": json.dumps(versions()),
    }
    return WorkerSettings(
        model=model.resolve(),
        model_sha256=sha256,
        reader=settings.reader,
        quantization=settings.quantization,
        columns=columns,
        kept=settings.kept,
        with_prompter=not set(instructions) <= set(manifest.instructions),
        output=output.resolve(),
        metadata=metadata,
        max_batch_tokens=settings.max_batch_tokens,
    )


def _job(plan: CorpusPlan, worker: WorkerSettings, settings: CorpusSettings) -> dict[str, Any]:
    """What must be the same for a job to go on; how much is read at once, and by whom, may change."""
    job = {
        "model_sha256": worker.model_sha256,
        "reader": worker.reader,
        "quantization": worker.quantization,
        "columns": worker.columns,
        "kept": [[column.name, column.type] for column in worker.kept],
        "text_column": settings.text_column,
        "id_column": settings.id_column,
        "shard_rows": settings.shard_rows,
        "inputs": [list(each) for each in plan.inputs],
    }
    checked: dict[str, Any] = json.loads(json.dumps(job))
    return checked


def _report(
    output: Path,
    worker: WorkerSettings,
    records: dict[int, ShardRecord],
    made: Sequence[ShardRecord],
    *,
    skipped: int,
    start: float,
    planned: float,
) -> CorpusReport:
    everything = list(records.values())
    if not any(record.rows for record in everything):
        raise DataError(f"no row of the corpus could be used; the files {output}/rejected-* say why.")
    tokens, padding = sum(record.tokens for record in everything), sum(record.padding for record in everything)
    end = time.perf_counter()
    return CorpusReport(
        output=output,
        columns=worker.columns,
        shards=len(everything),
        skipped_shards=skipped,
        rows=sum(record.rows for record in everything),
        rejected=sum(record.rejected for record in everything),
        truncated=sum(record.truncated for record in everything),
        tokens=tokens,
        padding_share=padding / max(tokens + padding, 1),
        seconds=end - start,
        embedded_rows=sum(record.rows for record in made),
        embedded_tokens=sum(record.tokens for record in made),
        embedding_seconds=end - planned,
    )
