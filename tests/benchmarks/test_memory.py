"""The peak is seen, even where it is over before anybody looks."""

import os
import time

import pytest
import torch

from benchmarks.memory import OutOfMemoryError, PeakMemory, is_out_of_memory, memory_in_use, release_memory, room_for

MIB = 1 << 20


def test_the_peak_of_a_block_is_what_it_held_at_once() -> None:
    release_memory("cpu")
    before = memory_in_use("cpu")
    with PeakMemory("cpu") as peak:
        block = torch.ones(100 * MIB, dtype=torch.uint8)
        if peak.source != "VmHWM":
            time.sleep(0.05)
        del block
    assert 90 * MIB < peak.bytes - before < 160 * MIB
    release_memory("cpu")
    with PeakMemory("cpu") as later:
        pass
    assert later.bytes - before < 60 * MIB  # an earlier block's peak is forgotten


def test_a_block_in_excess_is_told_even_if_it_is_over_in_a_moment() -> None:
    told: list[int] = []
    with PeakMemory("cpu", limit_bytes=memory_in_use("cpu") + 50 * MIB, on_excess=lambda: told.append(os.getpid())):
        torch.ones(150 * MIB, dtype=torch.uint8).sum()
    assert told
    told.clear()
    with PeakMemory("cpu", limit_bytes=memory_in_use("cpu") + 500 * MIB, on_excess=lambda: told.append(os.getpid())):
        torch.ones(10 * MIB, dtype=torch.uint8).sum()
    assert told == []


def test_missing_memory_is_known_by_its_many_names() -> None:
    named = [
        MemoryError(),
        OutOfMemoryError("x"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ]
    assert all(is_out_of_memory(error) for error in named)
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)


def test_there_is_room_for_less_than_the_machine_has() -> None:
    psutil = pytest.importorskip("psutil")
    assert 0 < room_for("cpu") < psutil.virtual_memory().total
