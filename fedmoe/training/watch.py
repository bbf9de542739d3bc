"""Watching a router at work while its model is evaluated.

Letters: K clients that are evaluated, C of them in a chunk, B samples of each, E experts,
O outputs, W samples of each client whose main expert is remembered.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedmoe.data import Federation, LazyFederation
from fedmoe.data.federation import Ints
from fedmoe.models.base import as_output
from fedmoe.models.combining import COMBINE, Combine
from fedmoe.models.moe import MixtureOfExperts
from fedmoe.models.router_metrics import RouterKind
from fedmoe.models.router_sums import UNKNOWN, Routed, main_experts, random_order, router_sums
from fedmoe.models.routing import Routing

_MOST_REMEMBERED = 256  # samples of one client
_REMEMBERED = 2**22  # samples of all clients together, of two bytes each


@dataclass(frozen=True)
class RouterPlan:
    """How the router of an experiment's model is watched.

    Attributes:
        kind: of the model.
        combine: how it makes one answer of its experts'.
        remembered: W.
        seed: of the random routing.
    """

    kind: RouterKind
    combine: Combine
    remembered: int
    seed: int

    @cached_property
    def unknown_1W(self) -> Tensor:
        """What a client that was never evaluated remembers."""
        return torch.full((1, self.remembered), UNKNOWN, dtype=torch.int16)


def plan_watch(model: nn.Module, data: Federation, seed: int) -> RouterPlan | None:
    """The plan for a model, `None` if it has no router; two samples show whether it has.

    Args:
        model: put into evaluation mode.
        data: the clients'.
        seed: of the experiment.
    """
    task = data.task
    with torch.no_grad():
        output = as_output(model.eval()(torch.zeros(2, task.num_features)))
    if output.routing is None:
        return None
    has_classes = task.kind == "classification"
    kind = RouterKind(
        num_experts=output.routing.weight.shape[-2],
        num_classes=task.num_outputs if has_classes else 1,
        has_classes=has_classes,
        has_answers=output.answers is not None,
    )
    combine = COMBINE[model.combine if isinstance(model, MixtureOfExperts) else "outputs"]
    most = max(1, min(_MOST_REMEMBERED, _REMEMBERED // data.num_clients))
    if not isinstance(data, LazyFederation):  # only making the samples would tell their number
        most = min(most, int(data.parts["test"].counts_K.max()))
    return RouterPlan(kind, combine, most, seed)


class RouterWatch:
    """Takes the sums for a round's router metrics, chunk by chunk of the clients.

    Attributes:
        sums_KJ: see `router_sums`; zero for a client without samples.
        main_KW: int16 main expert of each client's first samples, `UNKNOWN` for none; beyond its
            samples, anything.
    """

    def __init__(self, plan: RouterPlan, client_K: Ints, earlier_KW: Tensor) -> None:
        """Begin.

        Args:
            plan: what is watched.
            client_K: the clients.
            earlier_KW: what `main_KW` was at the last evaluation.
        """
        self._plan, self._client_K, self._earlier_KW = plan, client_K, earlier_KW
        self.main_KW = earlier_KW.clone(memory_format=torch.contiguous_format)
        self.sums_KJ = torch.zeros(len(client_K), plan.kind.size, device=earlier_KW.device)

    def see(
        self,
        chosen: Ints,
        routing: Routing,
        answers: Tensor | None,
        target: Tensor,
        real_CB: Tensor,
        error_CB: Tensor,
    ) -> None:
        """Add what became of a chunk's samples.

        Args:
            chosen: (C,) which of the clients these are.
            routing: parts (C, E, B), or (1, E, C B) where all clients share one model.
            answers: (C, E, O, B) or (1, E, O, C B) the experts' answers, if there are any.
            target: (C, B) classes or (C, B, O) targets.
            real_CB: which samples are not padding.
            error_CB: see `Routed`.
        """
        plan, (clients, batch) = self._plan, real_CB.shape
        index, width = torch.from_numpy(chosen).to(real_CB.device), self.main_KW.shape[1]
        earlier_CB = self._earlier_KW.index_select(0, index)[:, :batch]
        if batch > width:
            earlier_CB = torch.nn.functional.pad(earlier_CB, (0, batch - width), value=UNKNOWN)
        order_AES = random_order(
            plan.seed, self._client_K[chosen], batch, plan.kind.num_experts,
            shared=len(routing.weight) < clients,
        ).to(real_CB.device)  # fmt: skip
        main_CB = main_experts(routing, real_CB)
        routed = Routed(routing, answers, target, real_CB, error_CB, main_CB, earlier_CB, order_AES)
        self.sums_KJ.index_copy_(0, index, router_sums(routed, plan.kind, plan.combine))
        self.main_KW[:, :batch].index_copy_(0, index, main_CB[:, :width])
