"""Names beside lines do not overlap, and pictures are written."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_study_comparison import SETTINGS, comparison

from benchmarks.study.drawing import draw_bytes, draw_settings, moved_apart
from benchmarks.study.outcomes import Outcome

ROOM = 0.05


@given(st.lists(st.floats(0, 1), max_size=12))
def test_names_are_apart_and_in_order(heights: list[float]) -> None:
    wanted = {str(number): height for number, height in enumerate(heights)}
    moved = moved_apart(wanted, ROOM)
    assert moved.keys() == wanted.keys()
    by_height = sorted(wanted, key=lambda name: wanted[name])
    for below, above in pairwise(by_height):
        assert moved[above] - moved[below] >= ROOM - 1e-9
    if wanted:
        mean = sum(wanted.values()) / len(wanted)
        assert sum(moved.values()) / len(moved) == pytest.approx(mean, abs=1e-6)


def test_who_has_room_stays() -> None:
    assert moved_apart({"a": 0.1, "b": 0.5, "c": 0.52}, ROOM) == pytest.approx(
        {"a": 0.1, "b": 0.485, "c": 0.535}
    )


def test_pictures_are_written(tmp_path: Path) -> None:
    failed = [Outcome.failed("diverged", 1.0)] * 2
    found = comparison(
        {setting: {"fedmoe": 0.9, "ifca": 0.8} for setting in SETTINGS},
        {("mixture", "local"): failed},
    )
    for draw in (draw_settings, draw_bytes):
        draw(found, tmp_path / "one.png")
        assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
