"""Seconds by section, with a clock that stands still unless it is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmoe.profiling import SECTIONS, Profile, section


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds


@contextmanager
def a_clock() -> Iterator[Clock]:
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock()
        patch.setattr(time, "perf_counter", clock)
        yield clock


@pytest.fixture
def clock() -> Iterator[Clock]:
    with a_clock() as own:
        yield own


def test_a_section_counts_its_time(clock: Clock) -> None:
    with Profile().at_work() as profile:
        clock.wait(4)
        with section("train"):
            clock.wait(2)
        clock.wait(8)
        with section("train"):
            clock.wait(1)
        with section("guard"):
            pass
    assert profile.seconds == {"train": 3, "guard": 0}


def test_a_section_does_not_count_those_within_it(clock: Clock) -> None:
    with Profile().at_work() as profile, section("pack"):
        clock.wait(1)
        with section("train"):
            clock.wait(10)
            with section("evaluate"):
                clock.wait(100)
            clock.wait(20)
        with section("guard"):
            clock.wait(1000)
        clock.wait(2)
    assert profile.seconds == {"pack": 3, "train": 30, "evaluate": 100, "guard": 1000}


def test_a_section_within_one_of_its_name_counts_once(clock: Clock) -> None:
    with Profile().at_work() as profile, section("evaluate"):
        clock.wait(1)
        with section("evaluate"):
            clock.wait(2)
            with section("train"):
                clock.wait(4)
        clock.wait(8)
    assert profile.seconds == {"evaluate": 11, "train": 4}


Tree = list["tuple[str, int, Tree]"]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.just([]),
    lambda inner: st.lists(
        st.tuples(st.sampled_from(SECTIONS), st.integers(0, 50), inner), max_size=4
    ),
    max_leaves=12,
)


@settings(max_examples=60)
@given(TREES)
def test_any_nesting_counts_every_second_once(tree: Tree) -> None:
    expected: dict[str, float] = {}

    def walk(tree: Tree, clock: Clock) -> None:
        for name, seconds, inner in tree:
            expected[name] = expected.get(name, 0) + seconds
            with section(name):
                clock.wait(seconds // 2)
                walk(inner, clock)
                clock.wait(seconds - seconds // 2)

    with a_clock() as clock, Profile().at_work() as profile:
        walk(tree, clock)
        assert clock.now - 100 == sum(profile.seconds.values())
    assert profile.seconds == expected


def test_what_fails_is_counted_too(clock: Clock) -> None:
    with Profile().at_work() as profile, section("pack"):
        with pytest.raises(RuntimeError, match="broke"), section("train"):
            clock.wait(3)
            raise RuntimeError("it broke")
        clock.wait(1)
    assert profile.seconds == {"train": 3, "pack": 1}
    assert profile._open == []


def test_time_spent_elsewhere_is_not_that_of_the_section_that_waited(clock: Clock) -> None:
    with Profile().at_work() as profile:
        with section("pack"):
            clock.wait(10)
            profile.add("train", 7)
            with section("guard"):
                clock.wait(2)
        profile.add("train", 1)
    assert profile.seconds == {"train": 8, "guard": 2, "pack": 3}


def test_what_was_taken_is_not_counted_again(clock: Clock) -> None:
    with Profile().at_work() as profile:
        with section("train"):
            clock.wait(2)
        first = profile.take()
        assert profile.take() == {}
        with section("train"):
            clock.wait(3)
    assert (first, profile.take()) == ({"train": 2}, {"train": 3})


def test_nothing_is_counted_without_a_profile_at_work(clock: Clock) -> None:
    idle = Profile()
    with section("train"):
        clock.wait(1)
    with idle.at_work():
        pass
    with section("train"):
        clock.wait(1)
    assert idle.seconds == {}
    with pytest.raises(ValueError, match="as it was"), section("train"):
        raise ValueError("as it was")


def test_the_profile_before_is_at_work_again(clock: Clock) -> None:
    with Profile().at_work() as outer:
        with Profile().at_work() as inner, section("train"):
            clock.wait(1)
        with pytest.raises(KeyError), Profile().at_work():
            raise KeyError
        with section("train"):
            clock.wait(2)
    assert (inner.seconds, outer.seconds) == ({"train": 1}, {"train": 2})


def test_other_threads_are_not_counted(clock: Clock) -> None:
    def work() -> None:
        with section("train"):
            clock.wait(5)

    with Profile().at_work() as profile:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert profile.seconds == {}
