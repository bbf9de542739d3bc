"""Watching a router at work while its model is evaluated.

Letters: K clients that are evaluated, C of them in a chunk, B samples of each, E experts,
O outputs, W samples of each client whose main expert is remembered.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fedmoe.data import Federation, LazyFederation
from fedmoe.data.federation import Ints
from fedmoe.models.base import as_output
from fedmoe.models.combining import COMBINE, Combine
from fedmoe.models.moe import MixtureOfExperts
from fedmoe.models.router_metrics import TOTALS, RouterKind
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


def plan_watch(
    model: nn.Module, data: Federation, seed: int, compares: bool = True
) -> RouterPlan | None:
    """The plan for a model, `None` if it has no router; two samples show whether it has.

    Args:
        model: put into evaluation mode.
        data: the clients'.
        seed: of the experiment.
        compares: whether all experts run, so that they can be compared.
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
        has_answers=compares and output.answers is not None,
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
        main_KW: int16 main expert of each client's first samples, `UNKNOWN` for none.
    """

    def __init__(
        self,
        plan: RouterPlan,
        client_K: Ints,
        earlier_KW: Tensor,
        index_KM: Tensor | None = None,
    ) -> None:
        """Begin.

        Args:
            plan: what is watched.
            client_K: the clients.
            earlier_KW: what `main_KW` was at the last evaluation.
            index_KM: which experts each client's model has; `None` for all E.
        """
        self._plan, self._client_K, self._earlier_KW = plan, client_K, earlier_KW
        self._index_KM = index_KM
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
        held = routing.weight.shape[-2]
        kind = replace(plan.kind, num_experts=held)
        order_AES = random_order(
            plan.seed, self._client_K[chosen], batch, held, shared=len(routing.weight) < clients
        ).to(real_CB.device)
        main_CB = main_experts(routing, real_CB)
        index_CM = None if self._index_KM is None else self._index_KM.index_select(0, index)
        if index_CM is not None:
            main_CB = _among_all(main_CB, index_CM)
        routed = Routed(
            routing, answers if kind.has_answers else None, target, real_CB, error_CB, main_CB,
            earlier_CB, order_AES,
        )  # fmt: skip
        sums_CJ = router_sums(routed, kind, plan.combine)
        if index_CM is not None:
            sums_CJ = _spread(sums_CJ, index_CM, plan.kind)
        main_CB = main_CB.masked_fill(~real_CB, UNKNOWN)
        self.sums_KJ.index_copy_(0, index, sums_CJ)
        self.main_KW[:, :batch].index_copy_(0, index, main_CB[:, :width])


def _among_all(main_CB: Tensor, index_CM: Tensor) -> Tensor:
    """Main experts by their place among all, from those by their place among a client's own."""
    found_CB = index_CM.to(main_CB.dtype).gather(1, main_CB.clamp_min(0).long())
    return torch.where(main_CB == UNKNOWN, main_CB, found_CB)


def _spread(sums_CJ: Tensor, index_CM: Tensor, kind: RouterKind) -> Tensor:
    """Sums over all experts, from those over each client's own: the others have done nothing."""
    held, experts = index_CM.shape[1], kind.num_experts
    load_CM, totals_CT = sums_CJ[:, :held], sums_CJ[:, held : held + len(TOTALS)]
    class_load = sums_CJ[:, held + len(TOTALS) :]
    class_load_COM = class_load.reshape(-1, kind.num_classes, held)
    load_CE = sums_CJ.new_zeros(len(sums_CJ), experts).scatter_(1, index_CM, load_CM)
    index_COM = index_CM.unsqueeze(1).expand_as(class_load_COM)
    class_load_COE = sums_CJ.new_zeros(len(sums_CJ), kind.num_classes, experts)
    class_load_COE.scatter_(2, index_COM, class_load_COM)
    return torch.cat([load_CE, totals_CT, class_load_COE.flatten(1)], dim=1)
