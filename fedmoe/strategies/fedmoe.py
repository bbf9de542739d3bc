"""FedMoE: a mixture of experts under a gate that clients share and a prior of each one's own.

The server averages expert by expert (see `fedmoe.strategies.experts`). It begins with a single
model, out of which the experts are made after `warm_up_rounds` (see `fedmoe.strategies.seeding`),
lets their bodies part slowly (see `fedmoe.strategies.parting`), and chooses how strongly the
clients' priors are held at even shares: the clients report the loss on their validation data
under several strengths, and the one with the lowest loss over the federation holds in the next
round. So a federation of like clients trains one model, and one of unlike clients a mixture,
without being told which it is. The clients' side is `fedmoe.clients.algorithms.fedmoe`.

Letters: C clients that replied, E experts, S strengths.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.messages import words
from fedmoe.messages.arrays import Stack, as_arrays, signature_of
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.models import Parameters
from fedmoe.strategies.experts import ExpertAveraging
from fedmoe.strategies.parting import pull_together, share_of_mean
from fedmoe.strategies.seeding import seed_experts

_MEMORY = 0.8  # of the running mean of losses by strength
_FEWEST, _TAIL = 10, 0.15  # clients from which on their differences are cut, and where
_MOST_EXAMPLES = 5.0  # times the median
_MAX_LOSS = 1e9  # that a client may claim, summed over its validation samples


class FedMoE(ExpertAveraging):
    """Modular aggregation, with a warm-up and a common strength of the clients' priors.

    Attributes:
        warm_up_rounds: rounds in which all clients train one model; 0 starts with all experts.
            Fewer where the clients' clusters are known before.
        strengths: S of the clients' priors to choose among, in samples; a single one is kept.
        strength: the one that holds.
        body: names of the parameters that the experts part with slowly, if at all.
        body_half_life: in rounds after the warm-up; see `fedmoe.strategies.parting`.
        split: whether the experts have been made.
        loss_S: running mean of the clients' validation loss under each strength.
    """

    evaluation_rides = True

    def __init__(
        self,
        *,
        warm_up_rounds: int,
        strengths: Sequence[float],
        body: frozenset[str] = frozenset(),
        body_half_life: float = 1.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.body, self.body_half_life = body, body_half_life
        self.warm_up_rounds, self.strengths = warm_up_rounds, list(strengths)
        self.strength = self.strengths[len(self.strengths) // 2]
        self.split = warm_up_rounds == 0
        self.loss_S: NDArray[np.float64] | None = None

    @override
    def _records(self, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, RecordType]:
        config[words.PRIOR_STRENGTH] = self.strength
        return super()._records(arrays, config)

    @override
    def sent_experts(self) -> Tensor | None:
        """The first expert alone, until there are others."""
        return None if self.split else torch.zeros(1, dtype=torch.int64)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, make the experts when it is time, and choose the strength."""
        columns, tells, was_split = Replies.of(replies), self._wants_strengths, self.split
        merged = super().aggregate_train(server_round, columns)
        if tells and columns:
            self._choose_strength(columns)
        if self.split and not was_split:
            self.load = {}  # that of a single expert says nothing of those made of it
        return merged

    @override
    def merge(self, replies: Replies) -> Parameters:
        merged = super().merge(replies)
        if self.split:
            share = share_of_mean(self._sent.round - self.warm_up_rounds, self.body_half_life)
            return pull_together(merged, self.body, share)
        clusters = self.known_clusters(replies.nodes)
        if clusters is None and self._sent.round < self.warm_up_rounds:
            return merged
        self.split, self.warm_up_rounds = True, self._sent.round
        experts = [name for name in merged if name.startswith("experts.")]
        trained = replies.arrays(self.arrayrecord_key)
        seeded = seed_experts(
            {name: merged[name][0] for name in experts},
            {name: trained[name][:, 0] for name in experts},
            self.weights(replies), len(merged[experts[0]]), self.seed, clusters,
        )  # fmt: skip
        if self.assignment is not None:  # nothing fits a client better than its own model
            known = np.flatnonzero(seeded.cluster_C >= 0)
            nodes = [replies.nodes[place] for place in known.tolist()]
            self.assignment.presume(nodes, self._sent.round, seeded.cluster_C[known])
        return {**merged, **seeded.experts}

    def _choose_strength(self, replies: Replies) -> None:
        told = as_arrays(replies.arrays(words.STRENGTHS))
        loss_S = believed_losses(told["loss"], told["examples"][:, 0])
        if loss_S is None:
            return  # nobody has validation data to choose by
        before = loss_S if self.loss_S is None else self.loss_S
        self.loss_S = _MEMORY * before + (1 - _MEMORY) * loss_S
        self.strength = self.strengths[int(self.loss_S.argmin())]

    @override
    def check_reply(self, reply: Message) -> None:
        super().check_reply(reply)
        if not self._wants_strengths:
            return
        record = reply.content.get(words.STRENGTHS)
        if not isinstance(record, ArrayRecord) or set(record) != {"loss", "examples"}:
            raise ValueError("record strengths must hold loss and examples")
        loss, examples = record["loss"].numpy(), record["examples"].numpy()
        if self._strange(loss[None], examples[None])[0]:
            shapes = signature_of(record)
            raise ValueError(f"losses by strength are out of range or of wrong shape: {shapes}")

    @override
    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        doubtful = super().doubtful_replies(part, nodes)
        if not self._wants_strengths:
            return doubtful
        record = part.records.get(words.STRENGTHS)
        if not isinstance(record, Stack) or record.tensors.keys() != {"loss", "examples"}:
            return np.full(len(nodes), True)
        told = as_arrays(record.tensors)
        return doubtful | self._strange(told["loss"], told["examples"])

    @property
    def _wants_strengths(self) -> bool:
        held = len(next(iter(self._sent.models.values())))
        if self.assignment is not None:
            held = self.assignment.held
        return self.split and held > 1 and len(self.strengths) > 1

    def _strange(self, loss_CS: NDArray[Any], examples_C1: NDArray[Any]) -> NDArray[np.bool_]:
        """Which clients' losses by strength, (C,), cannot be."""
        shapes = loss_CS.shape[1:], examples_C1.shape[1:]
        if shapes != ((len(self.strengths),), (1,)) or loss_CS.dtype.kind != "f":
            return np.full(len(loss_CS), True)
        good = (loss_CS >= 0) & (loss_CS <= _MAX_LOSS) & (examples_C1 >= 0)
        return ~np.asarray((good & (examples_C1 <= _MAX_LOSS)).all(axis=1))


def believed_losses(loss_CS: NDArray[Any], examples_C: NDArray[Any]) -> NDArray[np.float64] | None:
    """The mean loss of a sample under each strength, (S,), that no tenth of the clients decides.

    Each client's mean over the strengths, and its differences from that, are cut at the quantiles
    over the clients that leave `_TAIL` on either side, and nobody's samples count for more
    than `_MOST_EXAMPLES` times the median.

    Args:
        loss_CS: each client's sum over its validation samples.
        examples_C: how many these are.

    Returns:
        The means; `None` if nobody has samples.
    """
    some_C = examples_C > 0
    if not some_C.any():
        return None
    count_C = examples_C[some_C].astype(np.float64)
    mean_CS = loss_CS[some_C].astype(np.float64) / count_C[:, None]
    level_C1 = mean_CS.mean(axis=1, keepdims=True)
    away_CS = mean_CS - level_C1
    if len(count_C) >= _FEWEST:
        low_S, high_S = np.quantile(away_CS, [_TAIL, 1 - _TAIL], axis=0)
        away_CS = np.clip(away_CS, low_S, high_S)
        level_C1 = np.clip(level_C1, *np.quantile(level_C1, [_TAIL, 1 - _TAIL]))
        count_C = np.minimum(count_C, _MOST_EXAMPLES * np.median(count_C))
    return np.asarray(count_C @ (level_C1 + away_CS) / count_C.sum())
