"""Many threads, and forked processes, give the vectors of one."""

import subprocess
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest

from promptembedder import PromptEmbedder

TEXTS = [f"text number {place} " * (place % 5 + 1) for place in range(32)]

FORKED = """
import multiprocessing
import numpy as np
import torch
from promptembedder.backbone import BackboneConfig
from promptembedder import ModelConfig, PromptEmbedder, PrompterConfig

backbone = BackboneConfig(source="random:tiny-llama", dtype="float32", layers=2)
config = ModelConfig(prompter=PrompterConfig(backbone=backbone, lora_rank=4), reader=backbone)
model = PromptEmbedder.create(config=config, device="cpu").eval()
texts = [f"text number {place} " * (place % 5 + 1) for place in range(32)]
for threads in (1, 2):
    torch.set_num_threads(threads)
    before = model.encode(texts, prompt="Find it")
    torch.randn(700, 700) @ torch.randn(700, 700)  # all threads have computed
    torch.randn(1 << 20).exp()
    fork = multiprocessing.get_context("fork")
    answers = fork.Queue()
    workers = [fork.Process(target=lambda: answers.put(model.encode(texts, prompt="Find it"))) for _ in range(2)]
    for worker in workers:
        worker.start()
    try:
        for _ in workers:
            assert np.abs(answers.get(timeout=60) - before).max() < 1e-5
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
    finally:
        for worker in workers:
            worker.kill()
print("same")
"""


def test_eight_threads_get_the_vectors_of_one(new_model: Callable[..., PromptEmbedder]) -> None:
    model = new_model()

    def vectors(place: int) -> np.ndarray:
        return model.encode(TEXTS[place::8], prompt=f"Find number {place % 3}", batch_size=2)

    alone = [vectors(place) for place in range(8)]
    model.encoder.store.clear()
    together: dict[int, list[np.ndarray]] = {place: [] for place in range(8)}
    threads = [
        threading.Thread(target=lambda own=place: together[own].extend(vectors(own) for _ in range(3)))
        for place in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    for place, expected in enumerate(alone):
        assert len(together[place]) == 3  # a thread that failed gave fewer
        for found in together[place]:
            np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.integration
@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
def test_forked_workers_compute_although_their_parent_has_computed_with_one_thread_or_two() -> None:
    """With two they waited for ever for the thread that the fork had left behind."""
    words = [sys.executable, "-c", FORKED]
    done = subprocess.run(words, capture_output=True, text=True, timeout=150, check=False)
    assert done.stdout.strip().endswith("same"), done.stderr[-2000:]
