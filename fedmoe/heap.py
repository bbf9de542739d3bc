"""Where Python's cyclic garbage collector looks, and when.

Importing torch and Flower makes 400,000 objects that stay. Left alone, the collector walks them
again and again while they are made, during the run, and once more as the process ends: together a
third of the time of `+experiment=scarcity`, process start to exit.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


@contextmanager
def quick_start() -> Iterator[None]:
    """Collect nothing meanwhile, and spare from then on what is there at the end.

    For imports, and for what is made once. `gc.unfreeze` undoes it.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


@contextmanager
def settled_heap() -> Iterator[None]:
    """Spare what is there when a run begins; afterwards it may be collected like all else."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def spare_all() -> None:
    """Spare what is there, in a process that is about to end: looking through it takes a second.

    What has an end of its own has it as ever: files, `atexit`, finalisers.
    """
    gc.freeze()


def leave(code: int) -> NoReturn:
    """End the process, with this exit code."""
    spare_all()
    sys.exit(code)
