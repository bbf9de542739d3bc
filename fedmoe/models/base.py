"""What every model promises, so that one client or a whole cohort can run it.

A model is a plain `nn.Module` whose forward pass is also a function of its parameters,
`apply(params, x)`. Given parameters with a leading client axis it computes all clients at
once; the module's own `forward` is the same function with the module's own parameters. A
module that has no such function runs under `torch.func.vmap` instead.

Letters: C clients (the leading axis, absent for one client), B batch, D features, O outputs,
F width of the representation, E experts.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from fedmoe.errors import ConfigError
from fedmoe.models.routing import Routing, StepContext

Parameters = dict[str, Tensor]

_ROUTING = "routing."


class ModelOutput(NamedTuple):
    """One forward pass.

    Attributes:
        y: (..., B, O) logits or predictions.
        features: (..., B, F) the representation that the last layer sees.
        routing: the router's decision, or `None` without a router.
        answers: (..., E, O, B) what each expert says, or `None`.
    """

    y: Tensor
    features: Tensor
    routing: Routing | None = None
    answers: Tensor | None = None


class Forward(Protocol):
    """A model as a function."""

    def __call__(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        """See `StackedModule.apply_parameters`."""
        ...


class StackedModule(nn.Module):
    """A module whose forward pass takes stacked parameters as well as its own.

    Attributes:
        draws: whether it may draw from torch's own generator, as dropout does.
        wants_keys: whether a router of it draws, by `StepContext.key_C`.
        undecayed: names of parameters that are no weights, and that weight decay leaves alone.
    """

    draws = False
    wants_keys = False
    undecayed: frozenset[str] = frozenset()

    def apply_parameters(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        """Run the model with the given parameters.

        Args:
            params: this module's parameters by name, either all with a leading client axis
                C or all without.
            x: (C, B, D) with stacked parameters; (B, D) or (D,) without.
            context: of a training step, for routers; `None` at evaluation.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> ModelOutput:
        """Run the model with its own parameters on (B, D) or (D,)."""
        return self.apply_parameters(dict(self.named_parameters()), x)


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x W^T + b`, for one client (weight (O, D)) or stacked (weight (C, O, D))."""
    if weight.dim() == 3:
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    return nn.functional.linear(x, weight, bias)


def uniform_parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter drawn as `nn.Linear` draws its own: U(-1, 1) / sqrt(fan_in)."""
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def stacked_forward(model: nn.Module) -> Forward:
    """The function that runs `model` for stacked parameters and (C, B, D) inputs."""
    if isinstance(model, StackedModule):
        return model.apply_parameters
    # Imported here: the first use of torch.func loads parts that built-in models do without.
    from torch.func import functional_call, vmap

    def one_client(params: Parameters, x: Tensor) -> Parameters:
        return _parts(as_output(functional_call(model, params, (x,))))

    # Dropout draws differently for each client, as it would one by one.
    stacked = vmap(one_client, randomness="different")

    def forward(
        params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> ModelOutput:
        del context  # a user's module knows of none
        if len(x) > 1:
            return _output(stacked(dict(params), x))
        # A single client needs no vmap, so a module that vmap cannot take runs one by one.
        parts = one_client({name: p[0] for name, p in params.items()}, x[0])
        return _output({name: part[None] for name, part in parts.items()})

    return forward


def _parts(output: ModelOutput) -> Parameters:
    """The tensors that there are, by name: vmap can return neither `None` nor a class."""
    parts = output._asdict()
    if (routing := parts.pop("routing")) is not None:
        parts |= {f"{_ROUTING}{name}": part for name, part in routing._asdict().items()}
    return {name: part for name, part in parts.items() if part is not None}


def _output(parts: Parameters) -> ModelOutput:
    """The output of which these are the parts."""
    routed = {name.removeprefix(_ROUTING): p for name, p in parts.items() if _ROUTING in name}
    plain: dict[str, Any] = {name: p for name, p in parts.items() if _ROUTING not in name}
    return ModelOutput(**plain, routing=Routing(**routed) if routed else None)


def as_output(result: ModelOutput | Tensor) -> ModelOutput:
    """Let a user's module return a bare tensor: its own outputs serve as features."""
    return result if isinstance(result, ModelOutput) else ModelOutput(result, result)


def parameters_of(model: nn.Module) -> Parameters:
    """Copies of a model's parameters by name, detached.

    Raises:
        ConfigError: the model has buffers (such as BatchNorm's), which no strategy averages, or
            frozen parameters, which cohorts would train.
    """
    kind = type(model).__name__
    if buffers := [name for name, _ in model.named_buffers()]:
        raise ConfigError(
            f"{kind} has buffers ({', '.join(buffers)}); models must keep all "
            "their state in parameters (use GroupNorm or LayerNorm in place of BatchNorm)"
        )
    if frozen := [name for name, p in model.named_parameters() if not p.requires_grad]:
        raise ConfigError(f"{kind} has frozen parameters ({', '.join(frozen)}); compute fixed "
                          "features beforehand instead")  # fmt: skip
    return {name: p.detach().clone() for name, p in model.named_parameters()}
