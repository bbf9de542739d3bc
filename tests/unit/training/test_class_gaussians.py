"""Samples of classes' Gaussians: densities against torch's, draws against their moments."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from fedmoe.training.class_gaussians import ClassGaussians, class_shares, gaussian_rehearsal

C, OUT, D, R = 3, 4, 5, 2
INFLATION = 1.4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(rank: int = R, seed: int = 0) -> ClassGaussians:
    """Some Gaussians; the last class of the first client is not known."""
    draw = rng(seed)
    basis = torch.linalg.qr(torch.randn(C, D, D, generator=draw)).Q[..., :rank]
    root = torch.randn(C, OUT, rank, rank, generator=draw)
    per_class = torch.rand(C, OUT if rank == 0 else 1, D, generator=draw) + 0.2
    weight = torch.full((C, OUT), 0.5)
    weight[0, -1] = 0
    return ClassGaussians(
        torch.randn(C, OUT, D, generator=draw), basis, root @ root.mT,
        per_class.expand(C, OUT, D), weight,
    )  # fmt: skip


def log_normal(x_D: Tensor, mean_D: Tensor, covariance_DD: Tensor) -> Tensor:
    found: Tensor = MultivariateNormal(mean_D, covariance_DD).log_prob(x_D)  # type: ignore[no-untyped-call]
    return found


def covariance(one: ClassGaussians, client: int, label: int) -> Tensor:
    """What is drawn from."""
    basis_Dr = one.basis[client]
    inside = basis_Dr @ one.spread[client, label] @ basis_Dr.T
    return inside + torch.diag(one.residual[client, label])


def judged_by(one: ClassGaussians, client: int, label: int) -> Tensor:
    """What densities are of: outside the directions, as wide everywhere."""
    if not one.basis.shape[-1]:
        return torch.diag(one.residual[client, label])
    noise = sum(float(v) for v in one.residual[client, label]) / (D - one.basis.shape[-1])
    basis_Dr = one.basis[client]
    return basis_Dr @ one.spread[client, label] @ basis_Dr.T + noise * torch.eye(D)


@pytest.mark.parametrize("rank", [0, R])
def test_densities_are_those_of_multivariate_normals(rank: int) -> None:
    one, x_CMD = made(rank), torch.randn(C, 6, D, generator=rng(1))
    found = one.log_density(x_CMD)
    for client in range(C):
        for m in range(6):
            expected = torch.stack([
                log_normal(x_CMD[client, m], one.mean[client, label], judged_by(one, client, label))
                for label in range(OUT)
            ])  # fmt: skip
            both = (found[client, :, m].softmax(dim=0), expected.softmax(dim=0))
            torch.testing.assert_close(*both, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("rank", [0, R])
def test_draws_have_the_moments_of_their_class_spread_wider(rank: int) -> None:
    one, count = made(rank), 40_000
    for label in range(OUT):
        x_CMD = one.draw(torch.full((C, count), label), torch.arange(C))
        for client in range(C):
            expected = INFLATION**2 * covariance(one, client, label)
            width = float(expected.diagonal().max())
            mean_D = x_CMD[client].mean(dim=0)
            torch.testing.assert_close(mean_D, one.mean[client, label], rtol=0, atol=0.05)
            found = torch.cov(x_CMD[client].T)
            torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * width)


def samples(seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Own samples: 8, 5 and 1, beside which lies padding that must not matter."""
    x_CnD = torch.randn(C, 8, D, generator=rng(seed))
    y_Cn = torch.randint(OUT, (C, 8), generator=rng(seed + 1))
    real_Cn = torch.arange(8) < torch.tensor([8, 5, 1])[:, None]
    return x_CnD.where(real_Cn.unsqueeze(-1), math.nan), y_Cn, real_Cn


def test_a_client_expects_its_own_classes_drawn_to_equal_shares() -> None:
    _, y_Cn, real_Cn = samples()
    known_CO = made().weight > 0
    found = class_shares(y_Cn, real_Cn, known_CO)
    for client in range(C):
        share = [
            0.0 if not known_CO[client, label]
            else 10 / OUT + sum(
                1 for y, real in zip(y_Cn[client], real_Cn[client], strict=True)
                if real and y == label
            )
            for label in range(OUT)
        ]  # fmt: skip
        expected = torch.tensor([one / sum(share) for one in share])
        torch.testing.assert_close(found[client], expected)


def rehearsal(one: ClassGaussians, own: tuple[Tensor, Tensor, Tensor], **changed: Any) -> Any:
    usual: dict[str, Any] = {"count": 60, "seed": 1, "round": 2, "client_C": np.arange(len(own[1]))}
    usual |= changed
    return gaussian_rehearsal(one, own, usual.pop("count"), **usual)


@pytest.mark.parametrize("rank", [0, R])
def test_a_rehearsal_is_labelled_by_bayes_rule(rank: int) -> None:
    one, own = made(rank), samples()
    found = rehearsal(one, own)
    share_CO = class_shares(own[1], own[2], one.weight > 0)
    for client in range(C):
        for m in (0, 7, 59):
            x_D = found.inputs[client, m]
            weights = [
                float(share_CO[client, label])
                * math.exp(
                    log_normal(x_D, one.mean[client, label], judged_by(one, client, label))
                )
                for label in range(OUT)
            ]  # fmt: skip
            expected = torch.tensor([weight / sum(weights) for weight in weights])
            torch.testing.assert_close(found.target[client, m], expected, rtol=1e-3, atol=1e-5)
    assert (found.target[0, :, -1] == 0).all()  # a class that nobody knows


def test_each_class_is_drawn_by_its_share_and_within_the_client_s_range() -> None:
    far = made()
    far = ClassGaussians(
        40.0 * torch.arange(OUT).view(1, OUT, 1).expand(C, OUT, D), far.basis, far.spread,
        far.residual, far.weight,
    )  # fmt: skip
    x_CnD, y_Cn, real_Cn = samples()
    x_CnD = torch.full_like(x_CnD, -1000.0)
    x_CnD[:, 0, 1:] = 1000.0  # so that nothing is cut
    found = rehearsal(far, (x_CnD, y_Cn, real_Cn))
    share_CO = class_shares(y_Cn, real_Cn, far.weight > 0)
    assert ((found.target.sum(dim=1) - 60 * share_CO).abs() <= 1).all()  # labels all but certain
    own = samples()
    cut = rehearsal(far, own)
    for client, count in enumerate((8, 5, 1)):
        low, high = own[0][client, :count].min(), own[0][client, :count].max()
        assert low <= cut.inputs[client].min() and cut.inputs[client].max() <= high


def test_who_is_not_told_rehearses_nothing_and_nobody_draws_for_others() -> None:
    one, own = made(), samples()
    nothing = ClassGaussians(*(torch.cat([v, 0 * v[:1]]) for v in vars(one).values()))
    wider = tuple(torch.cat([v, v[:1]]) for v in own)
    both = rehearsal(nothing, (wider[0], wider[1], wider[2]), client_C=np.array([4, 7, 9, 2]))
    assert both.weight[3].sum() == 0 and both.target[3].sum() == 0
    assert torch.isfinite(both.inputs).all() and torch.isfinite(both.target).all()
    alone = ClassGaussians(*(v[1:2] for v in vars(one).values()))
    again = rehearsal(alone, (own[0][1:2], own[1][1:2], own[2][1:2]), client_C=np.array([7]))
    torch.testing.assert_close(again.inputs[0], both.inputs[1])
    torch.testing.assert_close(again.weight[0], both.weight[1])
    for other in ({"round": 3}, {"seed": 2}):
        changed = rehearsal(one, own, client_C=np.array([4, 7, 9]), **other)
        assert not torch.equal(changed.inputs[1], both.inputs[1])


def test_gaussians_that_contradict_a_client_s_samples_are_not_rehearsed() -> None:
    mean_COD = 3.0 * torch.eye(D)[:OUT].expand(C, OUT, D)
    one = ClassGaussians(
        mean_COD, torch.zeros(C, D, 0), torch.zeros(C, OUT, 0, 0), torch.ones(C, OUT, D),
        torch.full((C, OUT), 0.5),
    )  # fmt: skip
    y_Cn = torch.arange(OUT).repeat(C, 2)
    real_Cn = torch.full(y_Cn.shape, True)
    right = rehearsal(one, (mean_COD.repeat(1, 2, 1), y_Cn, real_Cn))
    torch.testing.assert_close(right.weight.sum(dim=1), torch.full((C,), 2.0))
    wrong = rehearsal(one, (mean_COD.repeat(1, 2, 1), (y_Cn + 1) % OUT, real_Cn))
    assert (wrong.weight == 0).all()
    y_Cn[:, :2] = torch.tensor([1, 0])  # 6 of 8 right: (.75 - .25) / .75, squared
    half = rehearsal(one, (mean_COD.repeat(1, 2, 1), y_Cn, real_Cn))
    torch.testing.assert_close(half.weight.sum(dim=1), torch.full((C,), 2 * (2 / 3) ** 2))
