"""What of a model is its head."""

import pytest
import torch
from torch import Tensor, nn

from fedmoe.config import load_config
from fedmoe.data import Task
from fedmoe.errors import ConfigError
from fedmoe.models import ModelOutput, Parameters, build_model
from fedmoe.models.base import as_output
from fedmoe.models.heads import head_names, representation_width

TASK = Task(kind="classification", num_features=4, num_outputs=3)
MODELS = [
    ["model=linear"],
    ["model=mlp", "model.hidden=[5]"],
    ["model=mlp", "model.hidden=[5,6,7,8,9,5,6,7]"],  # weights.10 would sort before weights.2
    ["model=moe", "model.hidden=[5]", "model.num_experts=3"],
    ["model=moe", "model.hidden=[]", "model.num_experts=3"],
]


def model_of(words: list[str]) -> nn.Module:
    return build_model(load_config(words).model, TASK, 0)


@pytest.mark.parametrize("words", MODELS, ids=lambda words: "-".join(words))
def test_the_head_is_what_the_representation_does_not_depend_on(words: list[str]) -> None:
    """By the gradient: the body moves the features, the head only what is made of them."""
    model = model_of(words)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    features = as_output(model(x)).features
    params: Parameters = dict(model.named_parameters())
    body = {
        name
        for name, grad in zip(params, gradients(features, list(params.values())), strict=True)
        if grad.any()
    }
    gate = {name for name in params if "gate" in name or "router" in name}
    assert head_names(model) == params.keys() - body - gate


def gradients(of: Tensor, by: list[Tensor]) -> tuple[Tensor, ...]:
    if not of.requires_grad:
        return tuple(torch.zeros_like(value) for value in by)
    total = of.square().sum()
    return torch.autograd.grad(total, by, allow_unused=True, materialize_grads=True)


def test_the_heads_by_name() -> None:
    assert head_names(model_of(MODELS[0])) == {"weight", "bias"}
    assert head_names(model_of(MODELS[1])) == {"weights.1", "biases.1"}
    assert head_names(model_of(MODELS[2])) == {"weights.8", "biases.8"}


class Nested(nn.Module):
    """Two submodules and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.inner = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
        self.outer = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3), nn.Identity())


class Flat(nn.Module):
    """No submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))


def test_the_head_of_any_other_module_is_its_last_submodule() -> None:
    assert head_names(Nested()) == {"outer.2.weight", "outer.2.bias"}
    assert head_names(Flat()) == {"first", "second"}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["outer"], {"outer.0.weight", "outer.0.bias", "outer.2.weight", "outer.2.bias"}),
        (["scale", "outer.2.bias"], {"scale", "outer.2.bias"}),
        (["inner.0", "inner.0.weight"], {"inner.0.weight", "inner.0.bias"}),
    ],
)
def test_the_head_may_be_named(chosen: list[str], expected: set[str]) -> None:
    assert head_names(Nested(), chosen) == expected


@pytest.mark.parametrize("wrong", ["out", "outer.", "outer.2.w", ""])
def test_a_name_that_the_model_has_not_is_refused(wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"the model has no '{wrong}'; its parameters are scale,"):
        head_names(Nested(), ["outer", wrong])


@pytest.mark.parametrize(
    ("words", "width"), [(MODELS[0], 4), (MODELS[1], 5), (MODELS[3], 5), (MODELS[4], 4)]
)
def test_the_width_of_the_representation(words: list[str], width: int) -> None:
    assert representation_width(model_of(words), TASK) == width


class Maps(nn.Linear):
    """Its representation is no vector."""

    def forward(self, x: Tensor) -> ModelOutput:  # type: ignore[override]
        return ModelOutput(super().forward(x), x.reshape(-1, 2, 2))


def test_a_representation_that_is_no_vector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Maps: two samples have features \(2, 2, 2\), expected"):
        representation_width(Maps(4, 3), TASK)
