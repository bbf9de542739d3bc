"""Experts as descriptions, and as modules of their own once a mixture has been trained."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedmoe.errors import ConfigError
from fedmoe.models import Expert, Linear, MixtureOfExperts, Mlp, Router, parameters_of
from fedmoe.models.base import as_output
from fedmoe.models.filled import filled

D, OUT, B = 4, 3, 5


def tanh(num_features: int, num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(num_features, 6), nn.Tanh(), nn.Linear(6, num_outputs))


def growing() -> Expert:
    """Its modules have one unit more each time."""
    made: list[nn.Module] = []

    def module(num_features: int, num_outputs: int) -> nn.Module:
        made.append(nn.Linear(num_features, num_outputs + len(made)))
        return made[-1]

    return Expert(0, module=module)


def mixture(*experts: Expert) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(D, OUT, experts=experts, router=Router(num_experts=len(experts)))


def test_an_expert_is_linear_unless_it_has_widths_or_a_module() -> None:
    assert type(Expert(expert_id=0).build(D, OUT)) is Linear
    hidden = Expert(expert_id=1, hidden=[6, 5]).build(D, OUT)
    assert type(hidden) is Mlp
    assert [tuple(p.shape) for p in hidden.weights] == [(6, D), (5, 6), (OUT, 5)]
    assert type(Expert(2, module=tanh).build(D, OUT)) is nn.Sequential
    width: Any = np.int64(6)
    assert Expert(0, hidden=[width]) == Expert(0, hidden=(6,)) != Expert(0)


@pytest.mark.parametrize(
    ("expert", "reason"),
    [
        (lambda: Expert(-1), "expert_id=-1: must be a whole number of at least 0"),
        (lambda: Expert("first"), "expert_id=first: must be a whole number of at least 0"),  # type: ignore[arg-type]
        (lambda: Expert(0, hidden=[8, 0]), "hidden=[8, 0]: every width must be a whole number of"),
        (lambda: Expert(0, hidden=[1.5]), "hidden=[1.5]: every width must be a whole number of"),  # type: ignore[list-item]
        (lambda: Expert(0, hidden=[8], module=tanh), "hidden=[8]: a module of one's own"),
    ],
)
def test_a_wrong_expert_is_one_line(expert: Callable[[], Expert], reason: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(reason)):
        expert()


@pytest.mark.parametrize(
    ("experts", "reason"),
    [
        ([], "a mixture needs at least one expert"),
        ([Expert(0), Expert(0)], "experts must be numbered 0 to 1 in order, got [0, 0]"),
        ([Expert(1), Expert(0)], "experts must be numbered 0 to 1 in order, got [1, 0]"),
        (
            [Expert(0), Expert(1), Expert(2, hidden=[8])],
            "expert 2 is a perceptron with hidden=[8] and expert 0 is linear: a mixture's",
        ),
        ([Expert(0, module=tanh), Expert(1)], "expert 1 is linear and expert 0 is tanh: "),
        (growing().times(2), "expert 1 has parameters {'weight': (4, 4), 'bias': (4,)} and "),
    ],
    ids=["none", "twice", "order", "widths", "module", "shapes"],
)
def test_experts_that_are_not_alike_are_refused(experts: list[Expert], reason: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(reason)):
        MixtureOfExperts(D, OUT, experts=experts, router=Router(num_experts=len(experts)))


def test_a_router_for_another_number_of_experts_is_refused() -> None:
    with pytest.raises(ConfigError, match="a router for 3 experts, but there are 2"):
        MixtureOfExperts(D, OUT, experts=Expert(0).times(2), router=Router(num_experts=3))


KINDS = {"linear": Expert(0), "mlp": Expert(0, hidden=[6, 5]), "own": Expert(0, module=tanh)}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_mixture_holds_what_its_experts_build(kind: Expert) -> None:
    experts = kind.times(3)
    assert [expert.expert_id for expert in experts] == [0, 1, 2]
    own = parameters_of(mixture(*experts))
    torch.manual_seed(0)
    for number, expert in enumerate(experts):
        for name, value in parameters_of(expert.build(D, OUT)).items():
            torch.testing.assert_close(own[f"experts.{name}"][number], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_expert_of_a_mixture_answers_alone(kind: Expert) -> None:
    model, x = mixture(*kind.times(3)), torch.randn(B, D)
    answers = model(x).answers
    for number in range(3):
        alone = as_output(model.expert(number)(x)).y
        torch.testing.assert_close(alone, answers[number].mT)
    with pytest.raises(IndexError, match="expert 3: there are 0 to 2"):
        model.expert(3)


def test_an_expert_that_is_taken_out_is_a_copy() -> None:
    model = mixture(*Expert(0, hidden=[6]).times(2))
    before = parameters_of(model)
    alone = model.expert(1)
    assert not alone.training
    with torch.no_grad():
        for parameter in alone.parameters():
            parameter.zero_()
    for name, value in parameters_of(model).items():
        assert torch.equal(value, before[name])


def test_a_mixture_is_filled_with_fewer_experts() -> None:
    model = mixture(*Expert(0, hidden=[6]).times(3))
    fewer = filled(model.like(2), {name: p[1:] for name, p in parameters_of(model).items()})
    x = torch.randn(B, D)
    logits_EB = model(x).routing.logits[1:]
    answers_EOB = model(x).answers[1:]
    expected: Tensor = torch.einsum("eb,eob->bo", logits_EB.softmax(dim=0), answers_EOB)
    torch.testing.assert_close(fewer(x).y, expected)
    assert model(x).answers.shape[0] == 3
