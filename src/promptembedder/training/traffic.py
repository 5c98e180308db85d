"""Bytes that the processes of a run exchange in a step."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from promptembedder.shapes import Tensor

__all__ = ["Traffic"]


class Traffic:
    """Counts what is exchanged: gradients as they are handed to the all-reduce, and gathered rows of all processes.

    Attributes:
        step_bytes: Since the step began.
    """

    def __init__(self) -> None:
        """Nothing was exchanged yet."""
        self.step_bytes = 0
        self._watched: DistributedDataParallel | None = None

    def begin_step(self, model: Any) -> None:
        """Count from 0; `model` is watched from its first step on, if it is wrapped by DDP."""
        self.step_bytes = 0
        if isinstance(model, DistributedDataParallel) and model is not self._watched:
            model.register_comm_hook(self, _counted)
            self._watched = model

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Count tensors that were exchanged."""
        self.step_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _counted(traffic: Traffic, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    traffic.add([bucket.buffer()])
    everybody = dist.group.WORLD
    assert everybody is not None  # or there would be no DDP
    return allreduce_hook(everybody, bucket)
