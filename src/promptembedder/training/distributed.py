"""Distributed training: ranks, differentiable all_gather, consistency checks and communication volume."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from promptembedder.errors import RanksDifferError
from promptembedder.types import Float, Tensor

__all__ = [
    "CommBytes",
    "Ranks",
    "all_gather_with_grad",
    "assert_ranks_equal",
    "destroy_distributed",
    "init_distributed",
]


class CommBytes:
    """Counter of communicated bytes: gradients passed to the all-reduce, and gathered rows of all processes.

    Attributes:
        step_bytes: Bytes since the beginning of the step.
    """

    def __init__(self) -> None:
        """Start at 0."""
        self.step_bytes = 0
        self._hooked: DistributedDataParallel | None = None

    def begin_step(self, model: Any) -> None:
        """Reset the counter, and count the gradients of `model` from now on if it is wrapped by DDP."""
        self.step_bytes = 0
        if isinstance(model, DistributedDataParallel) and model is not self._hooked:
            model.register_comm_hook(self, _count_and_reduce)
            self._hooked = model

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Add the bytes of communicated tensors."""
        self.step_bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count_and_reduce(traffic: CommBytes, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
    traffic.add([bucket.buffer()])
    world = dist.group.WORLD
    assert world is not None  # or there would be no DDP
    return allreduce_hook(world, bucket)


@dataclass(frozen=True)
class Ranks:
    """Rank of this process and number of processes that train one model together.

    Attributes:
        rank: Rank of this process, from 0.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @property
    def is_first(self) -> bool:
        """True for the process that writes files and logs."""
        return self.rank == 0

    def shares(self, rows: int) -> list[slice]:
        """Split `rows` rows into one contiguous slice per process, of equal size up to one row."""
        ends = [rows * rank // self.world_size for rank in range(self.world_size + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def wait(self) -> None:
        """Block until all processes have reached this call."""
        if self.world_size > 1:
            dist.barrier()


def init_distributed() -> Ranks:
    """Return this process's rank, after joining the process group that `torchrun` or `accelerate launch` defines."""
    # without cpu=True, accelerate finds a single process on a machine without an accelerator
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    return Ranks(state.process_index, state.num_processes)


def destroy_distributed() -> None:
    """Leave the process group, so that the other processes do not report a lost connection."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_gather_with_grad(local: Float[Tensor, "local ..."], rows: int, ranks: Ranks) -> Float[Tensor, "rows ..."]:
    """Gather the rows of all processes in the order of the joint batch, with gradient to the local rows.

    Every process then computes the same joint loss, so the gradient of its local rows needs no second communication.
    The gradient is multiplied by the number of processes, because DDP averages gradients.

    Args:
        local: This process's share of the rows. Surplus rows at the end are placeholders of an empty share, and are
            dropped.
        rows: Number of rows of the joint batch.
    """
    return _JointRows.apply(local, rows, ranks)


class _JointRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, rows: int, ranks: Ranks) -> Tensor:
        shares = ranks.shares(rows)
        sizes = [share.stop - share.start for share in shares]
        sent = local.new_zeros(max(sizes), *local.shape[1:])  # all_gather needs parts of equal size
        sent[: sizes[ranks.rank]] = local[: sizes[ranks.rank]]
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        ctx.share, ctx.world_size, ctx.shape = shares[ranks.rank], ranks.world_size, local.shape
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        share = grads[0][ctx.share] * ctx.world_size
        grad = share.new_zeros(ctx.shape)
        grad[: len(share)] = share
        return grad, None, None


def assert_ranks_equal(named: Mapping[str, Sequence[Tensor]], ranks: Ranks, *, step: int) -> None:
    """Check that tensors are equal, bit by bit, on all processes.

    Args:
        named: Tensors by their description in the error message.

    Raises:
        RanksDifferError: If tensors differ. Raised on every process.
    """
    local = {name: _digest(tensors) for name, tensors in named.items()}
    gathered: list[dict[str, str]] = [local] * ranks.world_size
    dist.all_gather_object(gathered, local)
    for name in local:
        for rank, digests in enumerate(gathered):
            if digests[name] != gathered[0][name]:
                raise RanksDifferError(
                    f"step {step}: the {name} of process {rank} differ from those of process 0. "
                    "Give all processes the same recipe, data and library versions."
                )


def _digest(tensors: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().reshape(-1).contiguous().cpu().view(torch.uint8).numpy().data)
    return digest.hexdigest()
