"""A rule chooses the expert: a statistic of the sample, or chance as a control.

Nothing is learnt. The statistics are those by which the Scarcity Framework sent data to its
experts (variance of the input above 1: one expert, else the other), here sample by sample.

Letters: C clients (the leading axis, absent for one client), B batch, D features, E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fedmoe.models.draws import choices, fold, hashes_of_samples
from fedmoe.models.routers.fixed import FixedRouter
from fedmoe.models.routing import Routing, StepContext, certain

Rule = Literal["mean", "variance", "norm", "random", "round_robin"]

_STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.mean(dim=-1),
    "variance": lambda x: (x - x.mean(dim=-1, keepdim=True)).square().mean(dim=-1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
}


@dataclass(frozen=True, kw_only=True)
class RuleRouter(FixedRouter):
    """One expert per sample.

    Attributes:
        rule: `mean`, `variance` or `norm` over a sample's features; `random`; or `round_robin`,
            by the sample's place in its batch.
        thresholds: E - 1, rising; a sample goes to the expert whose number is how many of them
            its statistic exceeds. None for `random` and `round_robin`.

    At evaluation a sample has no draw and no place, since its batch is whoever happens to be
    there: both controls then choose by a hash of the sample itself.
    """

    rule: Rule
    thresholds: tuple[float, ...] = ()

    @property
    def active(self) -> float:
        """See `Router`."""
        return 1

    def of(self, num_experts: int) -> "RuleRouter":
        """See `Router`: the first ones, by the lowest thresholds."""
        return replace(self, num_experts=num_experts, thresholds=self.thresholds[: num_experts - 1])

    @property
    def wants_keys(self) -> bool:
        """See `Router`."""
        return self.rule == "random"

    def route(
        self, params: Mapping[str, Tensor], x: Tensor, context: StepContext | None = None
    ) -> Routing:
        """See `Router`."""
        del params
        return certain(self._expert(x, context), self.num_experts, x.dtype)

    def _expert(self, x: Tensor, context: StepContext | None) -> Tensor:
        """(..., B) numbers of experts."""
        if self.rule in _STATISTICS:
            edges = x.new_tensor(self.thresholds)
            return (_STATISTICS[self.rule](x).unsqueeze(-1) > edges).sum(dim=-1)
        if context is None:
            return choices(hashes_of_samples(x), self.num_experts)
        place_B = torch.arange(x.shape[-2], device=x.device)
        if self.rule == "round_robin":
            return (place_B % self.num_experts).expand(x.shape[:-1])
        assert context.key_C is not None
        return choices(fold(context.key_C[..., None], place_B), self.num_experts)
