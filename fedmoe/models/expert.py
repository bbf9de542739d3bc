"""One expert of a mixture, described before it is known what it is to learn.

Letters: B batch, D features, O outputs, E experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from numbers import Integral

from torch import nn

from fedmoe.errors import ConfigError
from fedmoe.models.linear import Linear
from fedmoe.models.mlp import Mlp

ModuleFactory = Callable[[int, int], nn.Module]


@dataclass(frozen=True)
class Expert:
    """What one expert is: linear, a perceptron, or a module of the user's own.

    A description, as a `Router` is one: `build` makes the module once the task is known.

    Attributes:
        expert_id: its place among the experts of its mixture, from 0.
        hidden: widths of its hidden layers, outermost first; linear without any.
        module: makes it instead, called as `module(num_features, num_outputs)`; what it returns
            maps (B, D) to (B, O).

    Raises:
        ConfigError: an id or width that is none, or both `hidden` and `module`.
    """

    expert_id: int
    _: KW_ONLY
    hidden: Sequence[int] = ()
    module: ModuleFactory | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.expert_id, Integral) and self.expert_id >= 0):
            raise ConfigError(f"expert_id={self.expert_id}: must be a whole number of at least 0")
        if not all(isinstance(width, Integral) and width >= 1 for width in self.hidden):
            raise ConfigError(
                f"hidden={list(self.hidden)}: every width must be a whole number of at least 1"
            )
        if self.hidden and self.module is not None:
            raise ConfigError(f"hidden={list(self.hidden)}: a module of one's own takes no widths")
        object.__setattr__(self, "hidden", tuple(int(width) for width in self.hidden))

    def build(self, num_features: int, num_outputs: int) -> nn.Module:
        """The module, its parameters drawn from torch's own generator.

        Args:
            num_features: D.
            num_outputs: O.
        """
        if self.module is not None:
            return self.module(num_features, num_outputs)
        if self.hidden:
            return Mlp(num_features, self.hidden, num_outputs)
        return Linear(num_features, num_outputs)

    def times(self, count: int) -> list["Expert"]:
        """As many experts of this kind, numbered from 0: what a mixture is made of."""
        return [replace(self, expert_id=expert_id) for expert_id in range(count)]

    @property
    def kind(self) -> str:
        """What it is, in words."""
        if self.module is not None:
            return getattr(self.module, "__qualname__", repr(self.module))
        return f"a perceptron with hidden={list(self.hidden)}" if self.hidden else "linear"


def check_alike(experts: Sequence[Expert]) -> None:
    """Refuse what cannot be the experts of one mixture, which are stacked.

    Raises:
        ConfigError: there are none; they are not numbered from 0 in order; or one of them is of
            another kind than the first.
    """
    if not experts:
        raise ConfigError("a mixture needs at least one expert")
    ids = [expert.expert_id for expert in experts]
    if ids != list(range(len(ids))):
        raise ConfigError(f"experts must be numbered 0 to {len(ids) - 1} in order, got {ids}")
    first = experts[0]
    for other in experts[1:]:
        if (other.hidden, other.module) != (first.hidden, first.module):
            raise ConfigError(
                f"expert {other.expert_id} is {other.kind} and expert 0 is {first.kind}: "
                "a mixture's experts must be alike, since they are stacked"
            )
