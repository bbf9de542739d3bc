import numpy as np
import pytest

from benchmarks.update_lengths import ATTACKED, attacking, longest, run

SMALL = [word for word in ATTACKED if not word.startswith("rounds=")]


def test_honest_updates_are_watched_and_never_refused() -> None:
    found = longest([*SMALL, "runtime.max_update_ratio=1.0"], rounds=2, seeds=1)
    assert len(found) == 2
    assert all(1 <= one < 10 for one in found)


@pytest.mark.parametrize(("limit", "harmless"), [("null", False), ("100.0", True)])
def test_an_attack_is_what_the_limit_is_about(limit: str, harmless: bool) -> None:
    words = [*SMALL, "rounds=2", f"runtime.max_update_ratio={limit}"]
    honest = run(words, seed=0)
    with attacking(1e6, absolute=True):
        attacked = run(words, seed=0)
    assert np.isfinite(attacked)
    assert (attacked > honest - 0.1) == harmless
