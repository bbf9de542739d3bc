"""Averaging expert by expert: the server's side of mixtures.

FedMoE's modular aggregation (arXiv 2408.11304, section 4.3): an expert that nobody used stays as
it was, one that a single client used is replaced, one that many used is their average; the rows
of the router follow their expert. Deviation: the average is weighted by the samples that each
client routed to the expert, as in FLEX-MoE (arXiv 2512.23070), and not by clients.

Letters: C clients that replied, E experts, M experts that a client was sent or sent back.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.messages import words
from fedmoe.messages.arrays import Signature, Stack, as_arrays, lazy_record, tensors_of
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters
from fedmoe.strategies.assignment import ExpertAssignment
from fedmoe.strategies.base import StackedFedAvg
from fedmoe.strategies.expert_replies import check_told, wrong_experts, wrong_fit


@dataclass(frozen=True)
class _Asked:
    """What was sent to train in a round.

    Attributes:
        row_of: by node, its row.
        index_CM: which experts.
    """

    row_of: dict[int, int]
    index_CM: NDArray[np.int64]


@dataclass
class _Sent:
    """What was sent last. Whatever is sent next sets it anew, so that no checkpoint keeps it.

    Attributes:
        round: of the last training.
        models: all experts, (E, ...) by name.
        asked: in training, once clients are sent unlike experts.
    """

    round: int = 0
    models: Parameters = field(default_factory=dict)
    asked: _Asked | None = None


def merge_experts(
    previous: Mapping[str, Tensor],
    arrays: Mapping[str, Tensor],
    index_CM: Tensor,
    examples_CM: Tensor,
) -> Parameters:
    """w_e <- sum_c n_ce w_ce / sum_c n_ce over the clients that hold e; unused ones stay.

    Args:
        previous: the experts before, (E, ...) by name.
        arrays: what came back, (C, M, ...) by name.
        index_CM: which experts these are.
        examples_CM: samples that each was trained on; 0 leaves a client's expert out.
    """
    index = index_CM.flatten()
    experts = len(next(iter(previous.values())))
    total_E = examples_CM.new_zeros(experts).index_add_(0, index, examples_CM.flatten())
    used_E = total_E > 0
    share = examples_CM.flatten() / total_E.clamp_min(1e-30)[index]
    merged = {}
    for name, before in previous.items():
        came = arrays[name].flatten(0, 1)
        weight = share.to(came).reshape(-1, *[1] * (came.dim() - 1))
        # An expert that was not used may hold anything: 0 times infinity is no number.
        kept = torch.where(weight > 0, came * weight, 0.0).to(before)
        found = torch.zeros_like(before).index_add_(0, index.to(before.device), kept)
        used = used_E.to(before.device).reshape(-1, *[1] * (before.dim() - 1))
        merged[name] = torch.where(used, found, before)
    return merged


class ExpertAveraging(StackedFedAvg):
    """FedAvg's sampling, and each expert averaged by those who used it.

    A reply holds, besides the arrays, a record `experts`: `index` (M,), whole, which experts its
    arrays are, and `examples` (M,), how many samples each was trained on; where there is an
    assignment, also `fit` (M,), the mean log-likelihood of the client's training samples under
    each.

    Attributes:
        sends_back_all: whether a reply holds all experts that were sent; else just one.
        assignment: chooses each client's experts, once `sent_experts` sends all; `None` where all
            clients are sent the same.
    """

    mergeable = False
    sends_back_all = True

    def __init__(self, *, assignment: ExpertAssignment | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.assignment = assignment
        self._sent = _Sent()

    @override
    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        self._sent.round = server_round
        return super().configure_train(server_round, arrays, config, grid)

    @override
    def _records(self, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, RecordType]:
        self._sent.models = tensors_of(arrays)
        if self._assigns:
            return {self.configrecord_key: config}
        index = self.sent_experts()
        if index is None:
            return super()._records(arrays, config)
        return {**super()._records(arrays, config), **self._held(index)}

    def sent_experts(self) -> Tensor | None:
        """Which experts all clients are sent, (M,) whole and ascending; `None` for all."""
        return None

    @property
    def _assigns(self) -> bool:
        """Whether each client is now sent experts of its own."""
        return self.assignment is not None and self.sent_experts() is None

    @override
    def personal_records(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        if self.assignment is None or not self._assigns:
            return None
        index_CM = self.assignment.choose(nodes, explore=True)
        self._sent.asked = _Asked({node: row for row, node in enumerate(nodes)}, index_CM)
        return self._each(index_CM)

    @override
    def personal_models(self, nodes: Sequence[int]) -> list[Mapping[str, RecordType]] | None:
        if self.assignment is None or not self._assigns:
            return None
        return self._each(self.assignment.choose(nodes, explore=False))

    def _each(self, index_CM: NDArray[np.int64]) -> list[Mapping[str, RecordType]]:
        """Clients with the same experts share their records: what is sent to them is one."""
        distinct, place_C = np.unique(index_CM, axis=0, return_inverse=True)
        records = [self._held(torch.from_numpy(index)) for index in distinct]
        return [records[place] for place in place_C.flatten().tolist()]

    def _held(self, index: Tensor) -> dict[str, RecordType]:
        """Some experts, (M,), and which they are."""
        chosen = {name: value[index] for name, value in self._sent.models.items()}
        return {
            self.arrayrecord_key: lazy_record(chosen),
            words.EXPERTS: lazy_record({"index": index}),
        }

    def reply_signature(self, sent: Signature) -> Signature:
        """What the arrays of a reply must be like."""
        if self.sends_back_all:
            return sent
        return {name: ((1, *shape[1:]), dtype) for name, (shape, dtype) in sent.items()}

    def check_reply(self, reply: Message) -> None:
        """Refuse what does not say which experts it holds, or claims nonsense.

        Raises:
            ValueError: says what is wrong.
        """
        record = reply.content.get(words.EXPERTS)
        if not isinstance(record, ArrayRecord):
            raise ValueError("the reply does not say which experts it holds")
        if set(record) != set(self._told_names):
            raise ValueError(f"record experts must hold {' and '.join(self._told_names)}")
        check_told(
            {name: array.numpy() for name, array in record.items()},
            self._asked_experts([reply.metadata.src_node_id])[0],
            reply.content.metric_records[words.METRICS][self.weighted_by_key],  # type: ignore[arg-type]
            wants_all=self.sends_back_all,
            wants_fit=self.assignment is not None,
        )

    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Which stacked replies, (P,), `check_reply` is to look at."""
        record = part.records.get(words.EXPERTS)
        if not isinstance(record, Stack) or record.tensors.keys() != set(self._told_names):
            return np.full(len(nodes), True)
        told, count_C = as_arrays(record.tensors), part.numbers(words.METRICS)[self.weighted_by_key]
        asked_CM = self._asked_experts(nodes)
        doubtful = wrong_experts(told, asked_CM, count_C, wants_all=self.sends_back_all)
        return doubtful if self.assignment is None else doubtful | wrong_fit(told)

    @property
    def _told_names(self) -> tuple[str, ...]:
        return ("index", "examples") if self.assignment is None else ("index", "examples", "fit")

    def _asked_experts(self, nodes: Sequence[int]) -> NDArray[np.int64]:
        """Which experts some nodes were sent to train, (C, M)."""
        if (asked := self._sent.asked) is not None:
            return asked.index_CM[[asked.row_of[node] for node in nodes]]
        index = self.sent_experts()
        count = len(next(iter(self._sent.models.values())))
        own = np.arange(count) if index is None else index.numpy()
        return np.broadcast_to(own, (len(nodes), len(own)))

    @override
    def merge(self, replies: Replies) -> Parameters:
        """Average each expert by the samples that it was trained on."""
        told = replies.arrays(words.EXPERTS)
        examples_CM = told["examples"]
        if self.assignment is not None and self._assigns:
            index_CM, nodes = told["index"].cpu().numpy(), replies.nodes
            self.assignment.note(nodes, self._sent.round, index_CM, told["fit"].cpu().numpy())
            # Who held an expert on trial that was not worth it leaves it alone.
            proven_CM = self.assignment.proven(nodes, index_CM)
            examples_CM = examples_CM * torch.from_numpy(proven_CM).to(examples_CM)
        arrays = replies.arrays(self.arrayrecord_key)
        return merge_experts(self._sent.models, arrays, told["index"], examples_CM)
