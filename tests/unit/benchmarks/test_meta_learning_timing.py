# Every policy of the timing learns from what is drawn for it.
import pytest

from benchmarks.learning_cases import CASES
from benchmarks.meta_learning import measure


@pytest.mark.parametrize("name", [case.name for case in CASES if case.features != 784])
@pytest.mark.parametrize("share", [1.0, 0.2])
def test_rounds_are_timed_and_weighed(name: str, share: float) -> None:
    found = measure(name, clients=10, share=share, rounds=4)
    assert len(found.milliseconds) == 4
    assert found.remembered > 0
