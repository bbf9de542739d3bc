"""Many experts of one kind as stacked tensors, whatever module one of them is.

Letters: C clients (the leading axis, absent for one client), E experts, B batch, D features,
O outputs, F width of the representation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedmoe.errors import ConfigError
from fedmoe.models.base import Parameters, parameters_of, stacked_forward
from fedmoe.models.linear import Linear
from fedmoe.models.mlp import Mlp
from fedmoe.models.routing import Routing
from fedmoe.models.sparse import SparsePass, layout_of, may_pay
from fedmoe.models.written import Kernel, Pass, kernel_of

# Their written pass takes (C, E, ...) parameters: the first layers of all experts, which see the
# same samples, are one wide product.
_WIDE = (Linear.written_pass, Mlp.written_pass)


class Answers(NamedTuple):
    """What all experts say.

    Attributes:
        y: (..., E, O, B) logits or predictions.
        features: (..., E, B, F) representations, or `None` where that is the input itself.
    """

    y: Tensor
    features: Tensor | None


class Experts:
    """How to run E experts that are all like one module, whose own parameters are not used.

    Attributes:
        prototype: the module.
        num_experts: E.
        kernel: the written pass for (C, E, ...) parameters, if the module has one.
        size: parameters of an expert.
    """

    def __init__(self, prototype: nn.Module, num_experts: int) -> None:
        self.prototype, self.num_experts = prototype, num_experts
        self._single = kernel_of(prototype)
        self.kernel = self._kernel()
        self.size = sum(p.numel() for p in prototype.parameters())

    def run(self, params: Mapping[str, Tensor], x: Tensor) -> Answers:
        """Run all experts.

        Args:
            params: by name, (C, E, ...), or (E, ...) for one client.
            x: (C, B, D), or (B, D) for one client.
        """
        clients, experts = x.shape[:-2], self.num_experts
        each = x.unsqueeze(-3).expand(*clients, experts, *x.shape[-2:]).reshape(-1, *x.shape[-2:])
        flat = {n: p.flatten(0, 1) for n, p in params.items()} if clients else params
        output = stacked_forward(self.prototype)(flat, each)
        y, features = output.y.mT, output.features
        y = y.reshape(*clients, experts, *y.shape[1:])
        if features is each:
            return Answers(y, None)
        return Answers(y, features.reshape(*clients, experts, *features.shape[1:]))

    def written(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, chosen_CEB: Tensor, active: float
    ) -> Pass:
        """Run those that were chosen, or all of them where that is quicker.

        Args:
            params: by name, (C, E, ...).
            x_CBD: the samples.
            chosen_CEB: 1 where an expert answers for a sample.
            active: see `Router.active`.

        Returns:
            a pass whose `y_COB` is (C, E, O, B), and anything where an expert was not chosen.
        """
        assert self.kernel is not None
        assert self._single is not None
        if may_pay(active, self.num_experts):
            layout = layout_of(chosen_CEB, self.size)
            if layout is not None:
                return SparsePass(self._single, params, x_CBD, layout)
        return self.kernel(params, x_CBD)

    def _kernel(self) -> Kernel | None:
        single = self._single
        if single is None or getattr(type(self.prototype), "written_pass", None) in _WIDE:
            return single
        return partial(_flat_pass, single)


def _flat_pass(
    kernel: Kernel, params: Mapping[str, Tensor], x_CBD: Tensor, context: None = None
) -> Pass:
    """The pass of a module that knows nothing of experts: its clients are the C E experts."""
    del context
    clients, experts = next(iter(params.values())).shape[:2]
    each = x_CBD.unsqueeze(1).expand(clients, experts, *x_CBD.shape[1:]).flatten(0, 1)
    return _FlatPass(
        kernel({n: p.flatten(0, 1) for n, p in params.items()}, each), (clients, experts)
    )


@dataclass(slots=True)
class _FlatPass:
    inner: Pass
    shape: tuple[int, int]
    routing: Routing | None = None

    @property
    def y_COB(self) -> Tensor:
        """(C, E, O, B)."""
        y_COB = self.inner.y_COB
        return y_COB.view(*self.shape, *y_COB.shape[1:])

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        flat = {name: value.flatten(0, 1) for name, value in into.items()}
        self.inner.backward(y_grad_COB.flatten(0, 1), logits_grad_CEB, flat, keep)


def stack_of(modules: list[nn.Module]) -> Parameters:
    """The parameters of modules of one kind, (E, ...) by name.

    Raises:
        ConfigError: one of them has other parameters than the first.
    """
    each = [parameters_of(module) for module in modules]
    shapes = [{name: tuple(value.shape) for name, value in own.items()} for own in each]
    for number, own in enumerate(shapes):
        if own != shapes[0]:
            raise ConfigError(
                f"expert {number} has parameters {own} and expert 0 has {shapes[0]}: "
                "a mixture's experts must be alike, since they are stacked"
            )
    return {name: torch.stack([own[name] for own in each]) for name in each[0]}


class ParameterTree(nn.Module):
    """Parameters under dotted names, as the module had them that they come from."""

    def __init__(self, params: Mapping[str, Tensor]) -> None:
        super().__init__()
        below: dict[str, dict[str, Tensor]] = {}
        for name, value in params.items():
            head, _, rest = name.partition(".")
            if rest:
                below.setdefault(head, {})[rest] = value
            else:
                self.register_parameter(head, nn.Parameter(value))
        for head, inner in below.items():
            self.add_module(head, ParameterTree(inner))
