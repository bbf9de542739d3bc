"""Models: linear, MLP, mixture of experts, and those that users register."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

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
from fedmoe.models.expert import Expert, ModuleFactory
from fedmoe.models.linear import Linear
from fedmoe.models.mlp import Mlp
from fedmoe.models.moe import MixtureOfExperts
from fedmoe.models.router_losses import RouterLosses
from fedmoe.models.routers import (
    ClientRouter,
    EnsembleRouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    NoisyRouter,
    PriorRouter,
    Router,
    RuleRouter,
    SoftmaxRouter,
    SwitchRouter,
)
from fedmoe.models.routing import Routing, StepContext
from fedmoe.registry import Registry
from fedmoe.schema import (
    CustomModelConfig,
    LinearConfig,
    MlpConfig,
    ModelConfig,
    MoeConfig,
)

__all__ = [
    "ClientRouter",
    "Expert",
    "Forward",
    "Linear",
    "MixtureOfExperts",
    "Mlp",
    "ModelOutput",
    "Parameters",
    "PriorRouter",
    "Router",
    "RouterLosses",
    "Routing",
    "StackedModule",
    "StepContext",
    "build_mixture",
    "build_model",
    "parameters_of",
    "register",
    "router_losses_of",
    "router_table",
    "stacked_forward",
]

Factory = Callable[..., nn.Module]
SingleConfig = LinearConfig | MlpConfig | CustomModelConfig
_ROUTERS: dict[str, type[Router]] = {
    "client": ClientRouter,
    "ensemble": EnsembleRouter,
    "expert_choice": ExpertChoiceRouter,
    "loss_free": LossFreeRouter,
    "noisy": NoisyRouter,
    "prior": PriorRouter,
    "rule": RuleRouter,
    "softmax": SoftmaxRouter,
    "switch": SwitchRouter,
}
REGISTRY = Registry("model.factory", "registered model", "fedmoe.models.register")


def register(name: str) -> Callable[[Factory], Factory]:
    """Make a model of your own available as `model=custom model.factory=NAME`.

    The factory is called as `factory(task, **model.options)` and returns an `nn.Module` that
    maps (B, D) to (B, O), or to a `ModelOutput`. The same factory makes the experts of a mixture
    with `model=moe model.expert=NAME`, then with `model.expert_options`.
    """
    return REGISTRY.add(name)


def build_model(config: ModelConfig, task: Task, seed: int) -> nn.Module:
    """Build a model with initial parameters drawn from `seed` alone.

    Raises:
        ConfigError: `model.factory` or `model.expert` names nothing registered, or what it
            makes does not fit; `model.combine` does not fit the task.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _mixture(config, task) if isinstance(config, MoeConfig) else _single(config, task)


def build_mixture(
    config: ModelConfig,
    task: Task,
    seed: int,
    *,
    router: Router,
    combine: Literal["outputs", "probabilities"],
) -> MixtureOfExperts:
    """A mixture of as many models as the router is for, each as configured.

    Raises:
        ConfigError: the configured model is a mixture itself, or cannot be built.
    """
    if isinstance(config, MoeConfig):
        raise ConfigError(
            "model=moe: this strategy makes a mixture of the model by itself; choose what each "
            "expert is: model=linear, model=mlp or model=custom"
        )
    experts = _expert(config, task).times(router.num_experts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MixtureOfExperts(
            task.num_features, task.num_outputs, experts=experts, router=router, combine=combine
        )


def _single(config: SingleConfig, task: Task) -> nn.Module:
    return _expert(config, task).build(task.num_features, task.num_outputs)


def _expert(config: SingleConfig, task: Task) -> Expert:
    """A model as configured, be it one of many or the only one."""
    if isinstance(config, LinearConfig):
        return Expert(0)
    if isinstance(config, MlpConfig):
        return Expert(0, hidden=config.hidden)
    made = _custom("model.factory", config.factory, task, "model.options", config.options)
    return Expert(0, module=made)


def router_losses_of(config: ModelConfig) -> RouterLosses:
    """What training adds to the loss of a model for its router's sake."""
    if not isinstance(config, MoeConfig):
        return RouterLosses()
    return RouterLosses(**asdict(config.losses))


def _mixture(config: MoeConfig, task: Task) -> MixtureOfExperts:
    if config.combine == "probabilities" and task.kind != "classification":
        raise ConfigError(
            f"model.combine=probabilities: needs classes, but the task is {task.kind}; "
            "use model.combine=outputs"
        )
    expert = Expert(0, hidden=config.hidden)
    if (name := config.expert) is not None:
        options = config.expert_options
        module = _custom("model.expert", name, task, "model.expert_options", options)
        expert = Expert(0, module=module)
    return MixtureOfExperts(
        task.num_features, task.num_outputs, experts=expert.times(config.num_experts),
        router=_router(config), combine=config.combine,
    )  # fmt: skip


def _router(config: MoeConfig) -> Router:
    """The router that `model.router` describes: its class has the same keys."""
    keys = asdict(config.router)
    return _ROUTERS[keys.pop("name")](num_experts=config.num_experts, **keys)


def router_table(router: Router) -> dict[str, Any]:
    """A router as `model.router` describes it.

    Raises:
        ConfigError: it is none of those that a configuration can name.
    """
    if type(router) is Router:
        return {"name": "softmax", "top_k": router.num_experts}
    for name, known in _ROUTERS.items():
        if type(router) is known:
            keys = asdict(router)
            del keys["num_experts"]
            return {"name": name, **keys}
    raise ConfigError(
        f"router: no configuration can describe a {type(router).__name__}; it must be a Router or "
        f"one of {', '.join(sorted(known.__name__ for known in _ROUTERS.values()))}"
    )


def _custom(
    key: str, name: str, task: Task, options_key: str, options: dict[str, Any]
) -> ModuleFactory:
    """What makes a registered model, and checks it."""
    factory = REGISTRY.find(name, key)

    def module(num_features: int, num_outputs: int) -> nn.Module:
        del num_features, num_outputs  # the task says them
        try:
            model: nn.Module = factory(task, **options)
        except TypeError as error:
            raise ConfigError(f"{options_key}={options}: {error}") from error
        _check_outputs(f"{key}={name}", model, task)
        return model

    return module


def _check_outputs(name: str, model: nn.Module, task: Task) -> None:
    """Two samples show a wrong model before a hundred clients fail with it.

    Raises:
        ConfigError: it has no parameters, cannot take the inputs, or gives another shape.
    """
    if not list(model.parameters()):
        raise ConfigError(f"{name}: the model has no parameters to train")
    samples = torch.zeros(2, task.num_features)
    try:
        with torch.no_grad():
            shape = tuple(as_output(model.eval()(samples)).y.shape)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"{name}: cannot take inputs of shape {tuple(samples.shape)}: {reason}"
        ) from error
    if shape != (2, task.num_outputs):
        raise ConfigError(
            f"{name}: gives {shape} for two samples, expected {(2, task.num_outputs)}"
        )
