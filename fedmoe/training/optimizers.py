"""SGD and Adam on stacked parameters, one learning rate per client.

The arithmetic is that of `torch.optim.SGD` and `torch.optim.Adam` with their defaults; theirs
are not used because they know no per-client rates, and because their first step imports the
compiler stack, which takes longer than many a whole run. A rule says where the gradient is to
be added, so that a written derivative adds it there and then.

Letters: C clients (leading axis of every parameter and state tensor).
"""

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from fedmoe.models.base import Parameters
from fedmoe.schema import TrainingConfig
from fedmoe.training.gradients import Gradient, per_client

_ADAM_BETAS = (0.9, 0.999)
_ADAM_EPS = 1e-8


class Optimizer(Protocol):
    """A rule that moves stacked parameters in place."""

    def initial_state(self, params: Mapping[str, Tensor]) -> Parameters:
        """State for fresh clients; every tensor has the client axis first."""
        ...

    def step(self, params: Parameters, gradient: Gradient, state: Parameters, lr_C: Tensor) -> None:
        """Move `params` and `state` in place; all may be views of the first clients only."""
        ...


class Sgd:
    """v <- m v + g;  w <- w - lr v, with weight decay added to g (as `torch.optim.SGD`).

    Weight decay leaves the parameters named in `undecayed` alone.
    """

    def __init__(
        self, momentum: float, weight_decay: float, undecayed: frozenset[str] = frozenset()
    ) -> None:
        self.momentum, self.weight_decay, self.undecayed = momentum, weight_decay, undecayed

    def initial_state(self, params: Mapping[str, Tensor]) -> Parameters:
        """One velocity per parameter, none without momentum."""
        if not self.momentum:
            return {}
        return {f"momentum.{name}": torch.zeros_like(p) for name, p in params.items()}

    def step(self, params: Parameters, gradient: Gradient, state: Parameters, lr_C: Tensor) -> None:
        """See `Optimizer`."""
        if not self.momentum and not self.weight_decay:
            gradient.add_to(params, scale_C=-lr_C)
            return
        if self.momentum:
            moves = {name: state[f"momentum.{name}"] for name in params}
            gradient.add_to(moves, keep=self.momentum)
        else:
            moves = gradient.tensors()
        for name, param in params.items():
            move = moves[name]
            if self.weight_decay and name not in self.undecayed:
                add = move.add_ if self.momentum else move.add  # a gradient is left as it was
                move = add(param, alpha=self.weight_decay)
            param.addcmul_(per_client(lr_C, param), move, value=-1)


class Adam:
    """Adam (arXiv 1412.6980, algorithm 1) with L2 weight decay, as `torch.optim.Adam`.

    Weight decay leaves the parameters named in `undecayed` alone.
    """

    def __init__(self, weight_decay: float, undecayed: frozenset[str] = frozenset()) -> None:
        self.weight_decay, self.undecayed = weight_decay, undecayed

    def initial_state(self, params: Mapping[str, Tensor]) -> Parameters:
        """Both moments per parameter, and each client's own step count."""
        first = next(iter(params.values()))
        clients, device = len(first), first.device
        state = {"adam.step": torch.zeros(clients, device=device)}
        for name, p in params.items():
            state[f"adam.first.{name}"] = torch.zeros_like(p)
            state[f"adam.second.{name}"] = torch.zeros_like(p)
        return state

    def step(self, params: Parameters, gradient: Gradient, state: Parameters, lr_C: Tensor) -> None:
        """See `Optimizer`."""
        grads = gradient.tensors()
        beta_1, beta_2 = _ADAM_BETAS
        step_C = state["adam.step"].add_(1)
        scale_C = lr_C / _one_minus_power(beta_1, step_C)
        root_C = _one_minus_power(beta_2, step_C).sqrt()
        for name, param in params.items():
            grad = grads[name]
            if self.weight_decay and name not in self.undecayed:
                grad = grad.add(param, alpha=self.weight_decay)
            first = state[f"adam.first.{name}"].lerp_(grad, 1 - beta_1)
            second = state[f"adam.second.{name}"].mul_(beta_2)
            second.addcmul_(grad, grad, value=1 - beta_2)
            spread = second.sqrt().div_(per_client(root_C, param)).add_(_ADAM_EPS)
            # A rate of zero makes the divisor infinite, and so the move zero.
            param.addcdiv_(first, spread.div_(per_client(scale_C, param)), value=-1)


def _one_minus_power(beta: float, step_C: Tensor) -> Tensor:
    """1 - beta^t; subtracted in single precision it would keep five digits for beta = 0.999."""
    return torch.expm1(step_C * math.log(beta)).neg_()


def make_optimizer(config: TrainingConfig, undecayed: frozenset[str] = frozenset()) -> Optimizer:
    """The optimiser that `training.optimizer` names; `undecayed` as in `StackedModule`."""
    if config.optimizer == "adam":
        return Adam(config.weight_decay, undecayed)
    return Sgd(config.momentum, config.weight_decay, undecayed)
