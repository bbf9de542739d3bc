"""Forward passes that know their own derivative: cheaper than autograd for small models.

A pass keeps samples on the last axis: on a CPU a softmax over a last axis shorter than a vector
register takes ten times as long, and one expert's block of a stacked product is contiguous only
in this layout. Whoever has no pass of this kind goes through autograd.

Letters: C clients, B batch, D features, O outputs, E experts, F width of the representation.
"""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from fedmoe.models.base import Parameters, StackedModule
from fedmoe.models.routing import Routing, StepContext


class Pass(Protocol):
    """One forward pass of stacked parameters, ready to be differentiated."""

    @property
    def y_COB(self) -> Tensor:
        """Logits or predictions."""
        ...

    @property
    def routing(self) -> Routing | None:
        """The router's decision, `None` without a router."""
        ...

    def backward(
        self, y_grad_COB: Tensor, logits_grad_CEB: Tensor | None, into: Parameters, keep: float
    ) -> None:
        """`into <- keep * into + gradient`; what `into` held is not read where `keep` is 0.

        Args:
            y_grad_COB: gradient of a scalar by `y_COB`.
            logits_grad_CEB: its gradient by `routing.logits` beyond what goes through `y_COB`.
            into: contiguous tensors by parameter name; may be the very parameters of the pass,
                which is then spent.
            keep: see above.
        """
        ...


class RepresentingPass(Pass, Protocol):
    """A pass that gives its representation, and takes a gradient by it."""

    @property
    def features_CFB(self) -> Tensor:
        """The representation that the last layer sees."""
        ...

    def backward_with(
        self, y_grad_COB: Tensor, features_grad_CFB: Tensor, into: Parameters, keep: float
    ) -> None:
        """`backward` where the scalar depends on the representation other than through `y_COB`.

        Args:
            y_grad_COB: its gradient by `y_COB`.
            features_grad_CFB: its gradient by `features_CFB` beyond that.
            into: see `Pass.backward`.
            keep: see there.
        """
        ...


class Kernel(Protocol):
    """A model's written pass as a function."""

    def __call__(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None, /
    ) -> Pass:
        """See `WrittenModule.written_pass`."""
        ...


class WrittenModule(StackedModule):
    """A stacked module with a written derivative.

    Attributes:
        gives_features: whether its passes are `RepresentingPass`es.
    """

    gives_features = False

    def written_pass(
        self, params: Mapping[str, Tensor], x_CBD: Tensor, context: StepContext | None = None
    ) -> Pass:
        """Run stacked parameters outside autograd: the numbers of `apply_parameters`."""
        raise NotImplementedError

    def knows_derivative(self) -> bool:
        """Whether `written_pass` serves: it may hang on parts that a user chose."""
        return True


def kernel_of(model: nn.Module) -> Kernel | None:
    """The model's written pass, or `None` where only autograd can differentiate it.

    A subclass that changes `apply_parameters` alone has lost its written pass: it would be that
    of another model.
    """
    if not isinstance(model, WrittenModule) or not model.knows_derivative():
        return None
    return model.written_pass if is_written(model, "written_pass", "apply_parameters") else None


def is_written(thing: object, derivative: str, of: str) -> bool:
    """Whether the method `derivative` belongs to the method `of`, and not to that of a parent."""
    for cls in type(thing).__mro__:
        if derivative in vars(cls):
            return True
        if of in vars(cls):
            return False
    return False


def accumulate(into: Tensor, value: Tensor, keep: float) -> None:
    """`into <- keep * into + value`, in place; see `Pass.backward`."""
    if keep == 0.0:
        into.copy_(value)
    elif keep == 1.0:
        into.add_(value)
    else:
        into.mul_(keep).add_(value)


def behind_relu(gradient: Tensor, output: Tensor) -> Tensor:
    """The gradient where ReLU let its input through, in place."""
    # As autograd does it; `where` and masks by booleans take up to 20 times as long.
    masked: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0, grad_input=gradient)
    return masked
