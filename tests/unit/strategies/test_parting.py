"""Bodies of experts that part slowly."""

import pytest
import torch
from mixture_runs import MODELS, run

from fedmoe.strategies.parting import pull_together, share_of_mean

SMALL = [
    "strategy=fedmoe", "strategy.num_experts=3", "strategy.warm_up_rounds=1", "rounds=3",
    *MODELS["mlp"],
]  # fmt: skip


@pytest.mark.parametrize(("rounds", "share"), [(0, 1.0), (5, 0.5), (10, 0.25), (1, 0.5**0.2)])
def test_the_pull_halves(rounds: int, share: float) -> None:
    assert share_of_mean(rounds, 5.0) == pytest.approx(share)


def test_bodies_meet_and_heads_stay() -> None:
    params = {"body": torch.tensor([[1.0], [3.0], [8.0]]), "head": torch.tensor([[1.0], [2.0]])}
    pulled = pull_together(params, {"body"}, 0.25)
    assert pulled["body"].flatten().tolist() == [1.75, 3.25, 7.0]
    assert pulled["head"] is params["head"]


def test_the_longer_the_half_life_the_nearer_are_bodies() -> None:
    def distances(half_life: str) -> tuple[float, float]:
        arrays = run([*SMALL, f"strategy.body_half_life={half_life}"]).arrays[-1]
        names = ("experts.weights.0", "experts.weights.2")
        body, head = (arrays[name].std(dim=0).mean().item() for name in names)
        return body, head

    at_once, soon, late = (distances(value) for value in ("null", "1.0", "1e9"))
    assert at_once[0] > 1.5 * soon[0] > 0
    assert late[0] < 1e-6 < 0.01 < late[1]
