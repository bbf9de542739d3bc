"""Learning from soft labels, against loops over clients, inputs and classes."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmoe.data import Task
from fedmoe.models import Mlp
from fedmoe.models.base import stacked_forward
from fedmoe.models.router_losses import RouterLosses
from fedmoe.training.distillation import distillation, looked_at
from fedmoe.training.losses import sample_loss
from fedmoe.training.steps import Batch, ByAutograd, ByHand, differentiation
from fedmoe.training.terms import Rehearsal, Step
from fedmoe.training.trust import label_trust

C, S, M, D, F, O, B = 4, 6, 3, 2, 5, 3, 7  # noqa: E741
MODEL = Mlp(D, (F,), O)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_term() -> Rehearsal:
    index_CM = torch.from_numpy(looked_at(0, 1, np.arange(C), S, M))
    weight_C = torch.tensor([0.5, 2.0, 0.0, 1.0], dtype=torch.float64)
    label_CSO = draw(C, S, O, seed=2).softmax(dim=2)
    return distillation(draw(S, D, seed=1), index_CM, label_CSO, weight_C)


def params(active: int = C) -> dict[str, Tensor]:
    named = enumerate(MODEL.named_parameters(), start=20)
    return {name: draw(C, *p.shape, seed=seed)[:active] for seed, (name, p) in named}


def step_of(values: dict[str, Tensor]) -> Step:
    forward, clients = stacked_forward(MODEL), len(next(iter(values.values())))
    output = forward(values, draw(C, B, D, seed=9)[:clients])
    target = torch.zeros(clients, B, dtype=torch.int64)
    return Step(forward, values, output, target, torch.full((clients, B), 1 / B))


@pytest.mark.parametrize("active", [1, 3, C])
def test_it_is_a_loop_over_clients_inputs_and_classes(active: int) -> None:
    values, public_SD = params(active), draw(S, D, seed=1)
    label_CSO = draw(C, S, O, seed=2).softmax(dim=2)
    index_CM = looked_at(0, 1, np.arange(C), S, M)
    found_C = a_term()(step_of(values))
    for c in range(active):
        own, total = {name: value[c] for name, value in values.items()}, 0.0
        for s in index_CM[c].tolist():
            logits = torch.func.functional_call(MODEL, own, (public_SD[s][None],)).y[0].tolist()
            size = math.log(sum(math.exp(z) for z in logits))
            total += sum(float(label_CSO[c, s, o]) * (size - logits[o]) for o in range(O))
        assert float(found_C[c]) == pytest.approx([0.5, 2.0, 0.0, 1.0][c] * total / M, rel=1e-9)


def test_both_ways_come_to_the_same_gradient() -> None:
    task = Task(kind="classification", num_features=D, num_outputs=O)
    term, values = a_term(), params()
    batch = Batch(
        draw(C, B, D, seed=9), torch.zeros(C, B, dtype=torch.int64),
        torch.full((C, B), 1 / B, dtype=torch.float64), None,
    )  # fmt: skip
    chosen = differentiation(MODEL, task, [term], RouterLosses())
    assert isinstance(chosen, ByHand)
    other = ByAutograd(stacked_forward(MODEL), sample_loss(task), [term], RouterLosses())
    found, expected = (way(values, batch)[1].tensors() for way in (chosen, other))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)


def test_it_follows_its_clients() -> None:
    index, values = torch.tensor([2, 3, 0]), params()
    chosen = a_term().take(index)(step_of({name: v[index] for name, v in values.items()}))
    torch.testing.assert_close(chosen, a_term()(step_of(values))[index])


def test_what_a_client_looks_at_is_its_own_draw_of_the_round() -> None:
    clients = np.array([3, 8, 1])
    first = looked_at(5, 1, clients, 40, 10)
    assert first.shape == (3, 10) and first.min() >= 0 and first.max() < 40
    assert all(len(set(row)) == 10 for row in first.tolist())
    np.testing.assert_array_equal(first[1:2], looked_at(5, 1, clients[1:2], 40, 10))
    others = [looked_at(6, 1, clients, 40, 10), looked_at(5, 2, clients, 40, 10), first[::-1]]
    assert all((other != first).any() for other in others)
    seen = np.concatenate([looked_at(5, r, clients[:1], 40, 10) for r in range(30)])
    assert np.bincount(seen.ravel(), minlength=40).min() > 0
    np.testing.assert_array_equal(looked_at(5, 1, clients, 4, 10), [[0, 1, 2, 3]] * 3)


def test_trust_is_the_squared_chance_corrected_accuracy_of_the_nearest_input() -> None:
    counts = [7, 5, 1]
    x_CnD, public_SD = draw(3, 7, D, seed=4), draw(S, D, seed=5)
    y_Cn = torch.randint(O, (3, 7), generator=torch.Generator().manual_seed(1))
    label_CSO = draw(3, S, O, seed=6).softmax(dim=2)
    nearest = torch.cdist(x_CnD[0], public_SD).argmin(dim=1)
    label_CSO[0] = 0.3 / O
    for n, s in enumerate(nearest.tolist()):  # the first is told what is right, but for one
        label_CSO[0, s] = torch.nn.functional.one_hot(y_Cn[0, n], O)
    y_Cn[0, nearest == nearest[0]] = label_CSO[0, nearest[0]].argmax()
    real_Cn = torch.arange(7) < torch.tensor(counts)[:, None]
    found_C = label_trust(x_CnD, y_Cn, real_Cn, public_SD, label_CSO)
    for c, count in enumerate(counts):
        right = 0
        for n in range(count):
            away = [float((x_CnD[c, n] - public_SD[s]).square().sum()) for s in range(S)]
            said = label_CSO[c, away.index(min(away))].tolist()
            right += said.index(max(said)) == int(y_Cn[c, n])
        expected = max(0.0, (right / count - 1 / O) / (1 - 1 / O)) ** 2
        assert float(found_C[c]) == pytest.approx(expected, abs=1e-6)
    assert float(found_C[0]) > 0.3
