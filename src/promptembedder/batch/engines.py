"""Who does the shards of a job: this process, or actors of Ray."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from promptembedder.batch.plan import ShardTask
from promptembedder.batch.shard_folder import ShardRecord
from promptembedder.batch.shard_worker import ShardWorker, WorkerSettings
from promptembedder.data import Position, SourceFile, TextColumns
from promptembedder.errors import DataError, PromptEmbedderError
from promptembedder.extras import require

__all__ = ["local_records", "ray_records"]

_LOCAL_STORE_BYTES = 256 << 20  # only tasks and records pass through it
_MOST_BLOCKS = 10_000  # of a dataset; each costs Ray's driver some memory


def local_records(
    settings: WorkerSettings, tasks: Sequence[ShardTask], *, on_rows: Callable[[int], None] = lambda _: None
) -> Iterator[ShardRecord]:
    """Embed the shards in this process, one after the other.

    Raises:
        PromptEmbedderError: As `ShardWorker` does.
    """
    worker = ShardWorker(settings)
    for task in tasks:
        yield worker.embed(task, on_rows=on_rows)


def ray_records(settings: WorkerSettings, tasks: Sequence[ShardTask], *, workers: int) -> Iterator[ShardRecord]:
    """Embed the shards in actors of Ray Data, each with a model of its own; records come as shards are finished.

    Ray is started on this machine, unless the environment variable RAY_ADDRESS names a cluster; every worker must find
    the model, the files and the output under the same paths. An actor that dies is started again, and its shard done
    again.

    Raises:
        ImportError: Ray is not installed.
        DataError: There are not enough processors for the workers, or a worker cannot go on.
    """
    ray = require("ray", extra="ray")
    started = not ray.is_initialized()
    if started:
        _start(ray)
    try:
        yield from _through_ray(ray, settings, tasks, workers)
    finally:
        if started:
            ray.shutdown()


def _start(ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else a warning about restarts, which are meant to be
    options: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"object_store_memory": _LOCAL_STORE_BYTES}
    ray.init(
        include_dashboard=None if "RAY_ADDRESS" in os.environ else False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        **options,
    )


def _through_ray(ray: Any, settings: WorkerSettings, tasks: Sequence[ShardTask], workers: int) -> Iterator[ShardRecord]:
    data = require("ray.data", extra="ray")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False
    resources = ray.cluster_resources()
    cores, gpus = float(resources.get("CPU", 1)), float(resources.get("GPU", 0))
    share = cores // workers if cores >= workers else cores / workers
    own = dataclasses.replace(settings, threads=max(int(share), 1))
    done = data.from_items(
        [{"task": _packed(task)} for task in tasks], override_num_blocks=min(len(tasks), _MOST_BLOCKS)
    ).map(
        _RayWorker,
        fn_constructor_kwargs={"settings": own},
        compute=data.ActorPoolStrategy(size=workers),
        num_cpus=share if gpus == 0 else 1,
        num_gpus=1 if gpus >= workers else None,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise DataError(row["error"])
        yield ShardRecord(**json.loads(row["record"]))


class _RayWorker:
    """An actor's work; what a user can mend comes back as words, since Ray would wrap an error in its own."""

    def __init__(self, *, settings: WorkerSettings) -> None:
        self._settings = settings
        self._worker: ShardWorker | None = None

    def __call__(self, row: dict[str, str]) -> dict[str, str]:
        try:
            if self._worker is None:
                self._worker = ShardWorker(self._settings)
            record = self._worker.embed(_unpacked(row["task"]))
        except PromptEmbedderError as error:
            return {"record": "", "error": str(error)}
        return {"record": json.dumps(dataclasses.asdict(record)), "error": ""}


def _packed(task: ShardTask) -> str:
    return json.dumps(dataclasses.asdict(task))


def _unpacked(packed: str) -> ShardTask:
    fields = json.loads(packed)
    return ShardTask(
        **{
            **fields,
            "source": SourceFile(**fields["source"]),
            "start": Position(**fields["start"]),
            "columns": TextColumns(**fields["columns"]),
        }
    )
