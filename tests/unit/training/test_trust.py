"""Trust in prototypes, against a loop over samples."""

import pytest
import torch

from fedmoe.training.trust import prototype_trust


def by_hand(
    x: list[torch.Tensor], y: list[int], prototypes: torch.Tensor, known: list[int]
) -> float:
    right = 0
    for sample, label in zip(x, y, strict=True):
        distances = {c: float((sample - prototypes[c]).square().sum()) for c in known}
        right += min(distances, key=lambda c: distances[c]) == label
    chance = 1 / len(prototypes)
    return max(0.0, (right / len(x) - chance) / (1 - chance)) ** 2


def test_trust_is_the_squared_chance_corrected_accuracy() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(3, 4, 2, generator=generator)
    known = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1]]).bool()
    counts = [7, 5, 1]
    y = torch.randint(4, (3, 7), generator=generator)
    x = torch.stack([p[c] for p, c in zip(prototypes, y, strict=True)])
    x = x + 0.8 * torch.randn(3, 7, 2, generator=generator)
    real = torch.arange(7) < torch.tensor(counts)[:, None]
    trust = prototype_trust(x, y, real, prototypes, known)
    for client, count in enumerate(counts):
        expected = by_hand(
            list(x[client, :count]),
            y[client, :count].tolist(),
            prototypes[client],
            torch.nonzero(known[client]).flatten().tolist(),
        )
        assert float(trust[client]) == pytest.approx(expected, abs=1e-6)


def test_right_prototypes_are_trusted_and_swapped_ones_are_not() -> None:
    x = torch.tensor([[[0.0], [0.1], [5.0], [5.1]]]).expand(2, 4, 1)
    y = torch.tensor([[0, 0, 1, 1]]).expand(2, 4)
    prototypes = torch.tensor([[[0.0], [5.0]], [[5.0], [0.0]]])
    known, real = torch.ones(2, 2).bool(), torch.ones(2, 4).bool()
    assert prototype_trust(x, y, real, prototypes, known).tolist() == [1.0, 0.0]
