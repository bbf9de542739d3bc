"""Averaging expert by expert: the server's side of mixtures.

FedMoE's modular aggregation (arXiv 2408.11304, section 4.3): an expert that nobody used stays as
it was, one that a single client used is replaced, one that many used is their average; the rows
of the router follow their expert. Deviation: the average is weighted by the samples that each
client routed to the expert, as in FLEX-MoE (arXiv 2512.23070), and not by clients.

Letters: C clients that replied, E experts, M experts that a client was sent or sent back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.messages import words
from fedmoe.messages.arrays import Signature, Stack, as_arrays, lazy_record, tensors_of
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters
from fedmoe.strategies.base import StackedFedAvg

_ROUNDING = 1.001  # an expert's share of a client's samples may exceed them by so much


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
    arrays are, and `examples` (M,), how many samples each was trained on.

    Attributes:
        sends_back_all: whether a reply holds all experts that were sent; else just one.
    """

    mergeable = False
    sends_back_all = True

    _sent: Parameters

    @override
    def _records(self, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, RecordType]:
        self._sent = tensors_of(arrays)
        index = self.sent_experts()
        if index is None:
            return super()._records(arrays, config)
        chosen = {name: value[index] for name, value in self._sent.items()}
        record = lazy_record({"index": index})
        return {**super()._records(lazy_record(chosen), config), words.EXPERTS: record}

    def sent_experts(self) -> Tensor | None:
        """Which experts all clients are sent, (M,) whole and ascending; `None` for all."""
        return None

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
        if set(record) != {"index", "examples"}:
            raise ValueError("record experts must hold index and examples")
        index, examples = record["index"].numpy(), record["examples"].numpy()
        count = np.array([reply.content.metric_records[words.METRICS][self.weighted_by_key]])
        if self._wrong(index[None], examples[None], count)[0]:
            asked = self._asked_experts().tolist()
            raise ValueError(
                f"experts {_told(index)} with examples {_told(examples)}: expected "
                f"{'all' if self.sends_back_all else 'one'} of {asked}, int64, with 0 to "
                f"{count[0]} examples each, float"
            )

    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Which stacked replies, (P,), `check_reply` is to look at."""
        record = part.records.get(words.EXPERTS)
        if not isinstance(record, Stack) or record.tensors.keys() != {"index", "examples"}:
            return np.full(len(nodes), True)
        told, count_C = as_arrays(record.tensors), part.numbers(words.METRICS)[self.weighted_by_key]
        return self._wrong(told["index"], told["examples"], count_C)

    def _wrong(
        self, index_CM: NDArray[Any], examples_CM: NDArray[Any], count_C: NDArray[Any]
    ) -> NDArray[np.bool_]:
        """Which clients, (C,), do not say what they should, or claim more than their examples."""
        experts = self._asked_experts()
        wanted = (len(experts) if self.sends_back_all else 1,)
        if (
            index_CM.dtype != np.int64
            or examples_CM.dtype.kind != "f"
            or index_CM.shape[1:] != wanted
            or examples_CM.shape[1:] != wanted
        ):
            return np.full(len(index_CM), True)
        strange = ~np.isin(index_CM, experts)
        if self.sends_back_all:
            strange |= index_CM != experts
        possible = (examples_CM >= 0) & (examples_CM <= _ROUNDING * count_C[:, None])
        return np.asarray((strange | ~possible).any(axis=1))

    def _asked_experts(self) -> NDArray[np.int64]:
        index = self.sent_experts()
        count = len(next(iter(self._sent.values())))
        return np.arange(count) if index is None else index.numpy()

    @override
    def merge(self, replies: Replies) -> Parameters:
        """Average each expert by the samples that it was trained on."""
        told = replies.arrays(words.EXPERTS)
        return merge_experts(
            self._sent, replies.arrays(self.arrayrecord_key), told["index"], told["examples"]
        )


def _told(array: NDArray[Any]) -> str:
    return f"{array.dtype}{array.tolist()}"
