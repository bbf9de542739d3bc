import gc
from collections.abc import Iterator

import pytest

from fedmoe.heap import leave, quick_start, settled_heap


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.enable()
    gc.unfreeze()
    yield
    gc.enable()
    gc.unfreeze()


def test_nothing_is_collected_at_the_start_and_what_it_made_is_spared() -> None:
    with quick_start():
        assert not gc.isenabled()
        made = [[] for _ in range(10_000)]  # type: list[list[int]]
    assert gc.isenabled()
    assert gc.get_freeze_count() > len(made)


def test_a_start_that_fails_gives_the_collector_back() -> None:
    with pytest.raises(ValueError, match="x"), quick_start():
        raise ValueError("x")
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    with quick_start():
        pass
    assert not gc.isenabled()


def test_the_heap_is_settled_for_the_run_only() -> None:
    with pytest.raises(ValueError, match="x"), settled_heap():
        assert gc.get_freeze_count() > 0
        assert gc.isenabled()
        raise ValueError("x")
    assert gc.get_freeze_count() == 0


def test_a_process_that_ends_looks_through_nothing() -> None:
    with pytest.raises(SystemExit) as stop:
        leave(3)
    assert stop.value.code == 3
    assert gc.get_freeze_count() > 0
