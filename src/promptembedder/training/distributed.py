"""Distributed training: ranks, differentiable all_gather, consistency checks and communication volume."""

from collections.abc import Sequence
from typing import Any
import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from promptembedder.types import Tensor
from dataclasses import dataclass
from itertools import pairwise
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from promptembedder.types import Float, Tensor
import hashlib
from collections.abc import Mapping, Sequence
from promptembedder.errors import RanksDifferError

__all__ = ['Ranks', 'Traffic', 'check_alike', 'joined_ranks', 'joint_rows', 'leave_ranks']

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


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one model together; by default alone.

    Attributes:
        own: Its number, from 0.
        count: Of all of them.
    """

    own: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.own == 0

    def shares(self, rows: int) -> list[slice]:
        """Which of so many rows each process takes: adjacent ones, as many as the others but for one."""
        ends = [rows * rank // self.count for rank in range(self.count + 1)]
        return [slice(*pair) for pair in pairwise(ends)]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            dist.barrier()


def joined_ranks() -> Ranks:
    """This process's place; one that `torchrun` or `accelerate launch` has started joins the others first."""
    # on a CPU accelerate has to be told, or it sees one process
    state = PartialState(cpu=not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU"))
    return Ranks(state.process_index, state.num_processes)


def leave_ranks() -> None:
    """Part from the other processes; without it they would be told that this one was lost."""
    if dist.is_initialized():
        dist.destroy_process_group()


def joint_rows(own: Float[Tensor, "own ..."], rows: int, ranks: Ranks) -> Float[Tensor, "rows ..."]:
    """The rows of all processes, in the order of the joint batch, with gradient to those of this one.

    Every process then computes the same joint loss, so it knows the gradient of its own rows without a second
    exchange. It is multiplied by the number of processes, of whose gradients DDP takes the mean.

    Args:
        own: This process's share of the rows; further rows at its end stand in for an empty share and are left out.
        rows: Of the joint batch.
    """
    return _JointRows.apply(own, rows, ranks)


class _JointRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, ranks: Ranks) -> Tensor:
        shares = ranks.shares(rows)
        sizes = [share.stop - share.start for share in shares]
        sent = own.new_zeros(max(sizes), *own.shape[1:])  # gathered parts have to be of one size
        sent[: sizes[ranks.own]] = own[: sizes[ranks.own]]
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        ctx.share, ctx.count, ctx.shape = shares[ranks.own], ranks.count, own.shape
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        share = grads[0][ctx.share] * ctx.count
        own = share.new_zeros(ctx.shape)
        own[: len(share)] = share
        return own, None, None


def check_alike(named: Mapping[str, Sequence[Tensor]], ranks: Ranks, *, step: int) -> None:
    """Compare the numbers of some tensors, bit by bit, with those of the other processes.

    Args:
        named: What the error calls them, and the tensors.

    Raises:
        RanksDifferError: They differ; raised on every process.
    """
    own = {name: _digest(tensors) for name, tensors in named.items()}
    gathered: list[dict[str, str]] = [own] * ranks.count
    dist.all_gather_object(gathered, own)
    for name in own:
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
