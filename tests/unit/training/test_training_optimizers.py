from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fedmoe.models import Parameters
from fedmoe.schema import TrainingConfig
from fedmoe.training.gradients import Found
from fedmoe.training.optimizers import Adam, Optimizer, Sgd, make_optimizer

C, STEPS = 3, 30
SHAPES = {"weight": (4, 2), "bias": (4,), "scale": ()}
LR_C = torch.tensor([0.3, 0.02, 0.1])

Torch = Callable[[list[Tensor], float], torch.optim.Optimizer]


def sgd(momentum: float, decay: float) -> tuple[Optimizer, Torch]:
    def theirs(params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=decay)

    return Sgd(momentum, decay), theirs


def adam(decay: float) -> tuple[Optimizer, Torch]:
    def theirs(params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr, weight_decay=decay)

    return Adam(decay), theirs


def undecayed(name: str) -> tuple[Optimizer, Torch]:
    """The bias is left alone."""

    def theirs(params: list[Tensor], lr: float) -> torch.optim.Optimizer:
        weight, bias, scale = params
        groups: list[dict[str, Any]] = [
            {"params": [weight, scale]},
            {"params": [bias], "weight_decay": 0.0},
        ]
        if name == "adam":
            return torch.optim.Adam(groups, lr=lr, weight_decay=0.1)
        return torch.optim.SGD(groups, lr=lr, momentum=0.6, weight_decay=0.1)

    left_alone = frozenset({"bias"})
    return (Adam(0.1, left_alone) if name == "adam" else Sgd(0.6, 0.1, left_alone)), theirs


RULES = {
    "sgd": sgd(0.0, 0.0),
    "sgd-momentum": sgd(0.9, 0.0),
    "sgd-decay": sgd(0.0, 0.1),
    "sgd-both": sgd(0.7, 0.05),
    "adam": adam(0.0),
    "adam-decay": adam(0.1),
    "sgd-undecayed": undecayed("sgd"),
    "adam-undecayed": undecayed("adam"),
}
every_rule = pytest.mark.parametrize(("ours", "theirs"), RULES.values(), ids=RULES)


def draw(seed: int) -> Parameters:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(C, *shape, generator=generator) for name, shape in SHAPES.items()}


def gradient(step: int) -> Parameters:
    grads = {name: value * 10.0 ** (step % 3 - 1) for name, value in draw(100 + step).items()}
    grads["scale"] *= 1e-8  # as small as Adam's epsilon
    grads["bias"][:, 0] = 0.0
    return grads


def clone(tensors: Parameters) -> Parameters:
    return {name: value.clone() for name, value in tensors.items()}


@every_rule
def test_each_client_moves_as_torch_moves_it(ours: Optimizer, theirs: Torch) -> None:
    params = draw(0)
    plain = [[value[c].clone() for value in params.values()] for c in range(C)]
    rules = [theirs(own, float(lr)) for own, lr in zip(plain, LR_C, strict=True)]
    state = ours.initial_state(params)
    for step in range(STEPS):
        grads = gradient(step)
        before = clone(grads)
        ours.step(params, Found(grads), state, LR_C)
        for name, value in grads.items():
            assert torch.equal(value, before[name])
        for c in range(C):
            for own, grad in zip(plain[c], grads.values(), strict=True):
                own.grad = grad[c].clone()
            rules[c].step()
            for own, value in zip(plain[c], params.values(), strict=True):
                torch.testing.assert_close(value[c], own, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 10, 1000])
def test_adams_corrections_are_exact_to_single_precision(steps: int) -> None:
    """Subtracted in single precision, 1 - 0.999 would be wrong by 1e-5 of itself."""
    one = torch.ones(1, 1, dtype=torch.float64)
    params = {"weight": torch.zeros_like(one)}
    plain = torch.zeros(1, dtype=torch.float64)
    rule = torch.optim.Adam([plain], lr=1.0)
    state = Adam(0.0).initial_state(params)
    for _ in range(steps):
        Adam(0.0).step(params, Found({"weight": one}), state, torch.ones(1))
        plain.grad = one[0]
        rule.step()
    torch.testing.assert_close(params["weight"][0], plain, rtol=5e-7, atol=0.0)


@every_rule
def test_clients_that_have_finished_stay_and_the_others_do_not_notice(
    ours: Optimizer, theirs: Torch
) -> None:
    params, everyone = draw(0), draw(0)
    state, full_state = ours.initial_state(params), ours.initial_state(everyone)
    for step, active in enumerate([3, 3, 2, 2, 1]):
        grads = gradient(step)
        resting = clone({**params, **state})
        ours.step(
            {name: value[:active] for name, value in params.items()},
            Found({name: value[:active] for name, value in grads.items()}),
            {name: value[:active] for name, value in state.items()},
            LR_C[:active],
        )
        ours.step(everyone, Found(grads), full_state, LR_C)
        for name, value in {**params, **state}.items():
            assert torch.equal(value[active:], resting[name][active:])
        for name, value in {**params, **state}.items():
            assert torch.equal(value[:active], {**everyone, **full_state}[name][:active])


@every_rule
def test_going_on_from_a_copy_of_the_state_is_going_on(ours: Optimizer, theirs: Torch) -> None:
    params = draw(0)
    state = ours.initial_state(params)
    assert all(len(value) == C for value in state.values())
    for step in range(7):
        ours.step(params, Found(gradient(step)), state, LR_C)
    params_2, state_2 = clone(params), clone(state)
    for step in range(7, 14):
        ours.step(params, Found(gradient(step)), state, LR_C)
        ours.step(params_2, Found(gradient(step)), state_2, LR_C)
    for name, value in {**params, **state}.items():
        assert torch.equal(value, {**params_2, **state_2}[name])


def test_without_momentum_there_is_no_state() -> None:
    assert Sgd(0.0, 0.1).initial_state(draw(0)) == {}


def test_the_configuration_picks_the_rule() -> None:
    def config(optimizer: str) -> TrainingConfig:
        return TrainingConfig(
            optimizer=optimizer,  # type: ignore[arg-type]
            learning_rate=0.1,
            momentum=0.6,
            weight_decay=0.2,
            epochs=1,
            batch_size=8,
            reset_optimizer=True,
            cohort_size=4,
            num_threads=1,
            device="cpu",
        )

    chosen = make_optimizer(config("sgd"))
    assert isinstance(chosen, Sgd)
    assert (chosen.momentum, chosen.weight_decay) == (0.6, 0.2)
    chosen = make_optimizer(config("adam"))
    assert isinstance(chosen, Adam)
    assert chosen.weight_decay == 0.2
