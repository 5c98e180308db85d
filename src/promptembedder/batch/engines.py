"""Engines of a sharded job: this process, or Ray actors."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from promptembedder.batch.plan import ShardTask
from promptembedder.batch.shard_folder import ShardRecord
from promptembedder.batch.shard_worker import ShardWorker, WorkerConfig
from promptembedder.data import Position, SourceFile, TextColumns
from promptembedder.errors import DataError, PromptEmbedderError
from promptembedder.extras import require

__all__ = ["run_locally", "run_on_ray"]

_LOCAL_STORE_BYTES = 256 << 20  # only tasks and records pass through the object store
_MAX_BLOCKS = 10_000  # blocks of a Ray dataset: each uses memory of the driver


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
    results = data.from_items(
        [{"task": _serialize(task)} for task in tasks], override_num_blocks=min(len(tasks), _MAX_BLOCKS)
    ).map(
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


def _serialize(task: ShardTask) -> str:
    return json.dumps(dataclasses.asdict(task))


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
