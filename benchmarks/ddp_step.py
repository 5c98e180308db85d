"""Overhead of a joint training step of two processes: fastest and median seconds, as JSON.

OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 benchmarks/ddp_step.py [ROWS TOKENS REPEATS]

Each process runs on its own core. The modes alternate: `alone` is a step of one process while the other one waits,
`beside` is a simultaneous step of both processes without communication, and `together` is a DDP step with the joint
batch. ROWS and TOKENS are the values of one process. `gather` and `reduce` are the collective operations of a step by
themselves, started simultaneously.
"""

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from promptembedder import PromptEmbedder
from promptembedder.method.text_encoder import trained_state
from promptembedder.training import LossConfig, build_contrastive_loss, destroy_distributed, init_distributed
from promptembedder.training.distributed import Ranks, all_gather_with_grad
from promptembedder.types import Tensor

Step = Callable[[], object]


def _steps(rows: int, tokens: int, ranks: Ranks) -> tuple[Step, Step, int, int]:
    """Return a local step, a DDP step, the number of trained bytes, and the embedding dimension."""
    model = PromptEmbedder.create(prompter="smollm2-135m", reader="smollm2-135m", device="cpu").train()
    trained = trained_state(model)
    others = [name for name, _ in (*model.named_parameters(), *model.named_buffers()) if name not in trained]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, others)
    wrapped = DistributedDataParallel(model)
    loss = build_contrastive_loss(model, LossConfig(), in_batch_negatives=True)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5)
    words, draw = ["red", "green", "cold", "warm", "house", "river", "stone", "song"], random.Random(ranks.rank)
    texts = [[" ".join(draw.choices(words, k=tokens)) for _ in range(rows)] for _ in range(2)]

    def step(embed: Callable[[dict], dict], joint: bool) -> None:
        columns = embed({"columns": [model.preprocess(own, prompt="Find it") for own in texts]})["columns"]
        if joint:
            stacked = torch.stack([column["sentence_embedding"] for column in columns], dim=1)
            columns = [
                {"sentence_embedding": one}
                for one in all_gather_with_grad(stacked, rows * ranks.world_size, ranks).unbind(1)
            ]
        value: Tensor = loss(columns, None)
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    numbers = sum(weight.numel() for weight in trained.values())
    return lambda: step(model, False), lambda: step(wrapped, True), 4 * numbers, model.encoder.reader.dim


def _timed(step: Step, ranks: Ranks) -> float:
    ranks.wait()
    started = time.perf_counter()
    step()
    ranks.wait()
    return time.perf_counter() - started


def main(rows: int = 4, tokens: int = 64, repeats: int = 12) -> None:
    """Print the measurements."""
    ranks = init_distributed()
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[ranks.rank]})
    own, together, trained_bytes, dim = _steps(rows, tokens, ranks)
    buffer, embeddings = torch.zeros(trained_bytes // 4), torch.zeros(rows, 2, dim)
    kinds: dict[str, Step] = {
        "alone": own if ranks.is_first else lambda: None,
        "beside": own,
        "together": together,
        "gather": lambda: all_gather_with_grad(embeddings, rows * ranks.world_size, ranks),
        "reduce": lambda: dist.all_reduce(buffer),
    }
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    for repeat in range(-2, repeats):
        for name, step in kinds.items():
            taken = _timed(step, ranks)
            if repeat >= 0:
                seconds[name].append(taken)
    if ranks.is_first:
        found: dict[str, object] = {
            name: {"fastest": round(min(each), 4), "median": round(statistics.median(each), 4)}
            for name, each in seconds.items()
        }
        found |= {"trained_bytes": trained_bytes, "gathered_bytes": embeddings.numel() * 4 * ranks.world_size}
        sys.stdout.write(json.dumps(found) + "\n")
    destroy_distributed()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
