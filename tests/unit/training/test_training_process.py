import ctypes
import platform
from typing import Any

import pytest
import torch

from fedmoe.training import process
from fedmoe.training.process import keep_freed_memory, prepare_process

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")


@needs_glibc
def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    import resource

    assert keep_freed_memory()
    pages = 10 * 10 * 2**20 // resource.getpagesize()
    faults = []
    # Smaller by 1 % the second time: a block is aligned, and does not fit into the place of one
    # of its own size, so that the heap grows for some more rounds.
    for size in (10 * 2**20, 99 * 2**20 // 10):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        stacks = [torch.ones(size // 4) for _ in range(10)]
        del stacks
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[1] < pages / 10


@pytest.mark.parametrize("error", [AttributeError, OSError, TypeError])
def test_another_c_library_is_left_alone(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: Any) -> Any:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not keep_freed_memory()


def test_a_process_is_prepared_with_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    monkeypatch.setattr(process, "keep_freed_memory", lambda: calls.append("kept"))
    prepare_process(3)
    assert calls == [3, "kept"]
