"""Payloads of a cohort, against loops over each client's samples."""

import numpy as np
import pytest
import torch

from fedmoe.clients.payloads import prototypes, statistics


@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_prototypes_are_sums_and_counts_of_each_clients_samples(min_count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = [5, 1, 0, 9]
    x_CnD = torch.randn(4, 9, 3, generator=generator)
    y_Cn = torch.randint(4, (4, 9), generator=generator)
    real_Cn = torch.arange(9) < torch.tensor(counts)[:, None]
    stacked = prototypes(x_CnD, y_Cn, real_Cn, 4, min_count)
    for client, count in enumerate(counts):
        for label in range(4):
            own = [i for i in range(count) if y_Cn[client, i] == label]
            told = len(own) if len(own) >= min_count else 0
            assert stacked["prototype_count"][client, label] == told
            expected = x_CnD[client, own].sum(dim=0) if told else torch.zeros(3)
            torch.testing.assert_close(stacked["prototype_sum"][client, label], expected)


def test_statistics_give_the_exact_pooled_regression() -> None:
    generator = torch.Generator().manual_seed(1)
    counts = [5, 2, 7]
    x = torch.randn(3, 7, 3, generator=generator)
    y = torch.randn(3, 7, 2, generator=generator)
    real = torch.arange(7) < torch.tensor(counts)[:, None]
    stacked = {name: t.double().numpy() for name, t in statistics(x, y, real).items()}
    rows = [(x[c, i].numpy(), y[c, i].numpy()) for c, n in enumerate(counts) for i in range(n)]
    design = np.array([[*features, 1.0] for features, _ in rows])
    targets = np.array([target for _, target in rows])
    pooled = np.linalg.lstsq(design, targets, rcond=None)[0]
    summed = {name: array.sum(axis=0) for name, array in stacked.items()}
    solved = np.linalg.solve(summed["statistics_xx"], summed["statistics_xy"])
    np.testing.assert_allclose(solved, pooled, atol=1e-5)
    np.testing.assert_allclose(summed["statistics_yy"], (targets**2).sum(axis=0), rtol=1e-5)
