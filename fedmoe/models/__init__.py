"""Models: linear, MLP, mixture of experts, and those that users register."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.models.base import (
    Forward,
    ModelOutput,
    Parameters,
    StackedModule,
    as_output,
    parameters_of,
    stacked_forward,
)
from fedmoe.models.linear import Linear
from fedmoe.models.mlp import Mlp
from fedmoe.models.moe import MixtureOfExperts
from fedmoe.registry import Registry
from fedmoe.schema import LinearConfig, MlpConfig, ModelConfig, MoeConfig

__all__ = [
    "Forward",
    "Linear",
    "MixtureOfExperts",
    "Mlp",
    "ModelOutput",
    "Parameters",
    "StackedModule",
    "build_model",
    "parameters_of",
    "register",
    "stacked_forward",
]

Factory = Callable[..., nn.Module]
REGISTRY = Registry("model.factory", "registered model", "fedmoe.models.register")


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a model of your own available as `model=custom model.factory=NAME`.

    The factory is called as `factory(task, **model.options)` and returns an `nn.Module` that
    maps (B, D) to (B, O), or to a `ModelOutput`.
    """
    return REGISTRY.add(name)


def build_model(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """Build a model with initial parameters drawn from `seed` alone.

    Raises:
        ConfigError: `model.factory` names nothing registered.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if isinstance(config, LinearConfig):
            return Linear(task.num_features, task.num_outputs)
        if isinstance(config, MlpConfig):
            return Mlp(task.num_features, config.hidden, task.num_outputs)
        if isinstance(config, MoeConfig):
            return MixtureOfExperts(
                task.num_features,
                task.num_outputs,
                num_experts=config.num_experts,
                top_k=config.top_k,
                hidden=config.hidden,
            )
        return _custom(config.factory, task, config.options)


def _custom(name: str, task: Task, options: dict[str, Any]) -> nn.Module:
    factory = REGISTRY.find(name)
    try:
        model: nn.Module = factory(task, **options)
    except TypeError as error:
        raise ConfigError(f"model.options={options}: {error}") from error
    _check_outputs(name, model, task)
    return model


def _check_outputs(name: str, model: nn.Module, task: Task) -> None:
    """Two samples show a wrong model before a hundred clients fail with it.

    Raises:
        ConfigError: it has no parameters, cannot take the inputs, or gives another shape.
    """
    if not list(model.parameters()):
        raise ConfigError(f"model.factory={name}: the model has no parameters to train")
    samples = torch.zeros(2, task.num_features)
    try:
        with torch.no_grad():
            shape = tuple(as_output(model.eval()(samples)).y.shape)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"model.factory={name}: cannot take inputs of shape {tuple(samples.shape)}: {reason}"
        ) from error
    if shape != (2, task.num_outputs):
        raise ConfigError(
            f"model.factory={name}: gives {shape} for two samples, expected {(2, task.num_outputs)}"
        )
