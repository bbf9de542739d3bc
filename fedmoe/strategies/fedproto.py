"""FedProto: the server's side.

Tan et al., "FedProto: federated prototype learning across heterogeneous clients", arXiv
2105.00243, algorithm 1.

No weights travel. Clients tell, class by class, the sum and number of their representations of
their samples; the server sends back each class's mean, which pulls the clients' representations
(see `fedmoe.clients.algorithms.fedproto`).

The mean weighs clients by their samples of the class, as equation 6 does but for its leading
1 / |N_j|, which would shrink a prototype with the number of clients that have the class; the
authors' code, with neither, takes the plain mean over clients. A class of which no client told
in a round keeps the prototype that it had.

Letters: P replies of a part, O classes, F width of the representation.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fedmoe.data.federation import Task
from fedmoe.errors import ReplyError
from fedmoe.insight.payloads.base import MAX_MAGNITUDE
from fedmoe.messages import words
from fedmoe.messages.array_checks import check_arrays
from fedmoe.messages.arrays import Signature, Stack, from_record, lazy_record
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import RecordType
from fedmoe.strategies.local import Local

_LOG = logging.getLogger("fedmoe.strategies.fedproto.FedProto")


class FedProto(Local):
    """Sampling as in FedAvg; what travels is prototypes.

    Attributes:
        mean_OF: the prototypes; zero where there is none yet.
        known_O: which classes have one, 1 or 0.
    """

    evaluation_rides = True

    def __init__(self, task: Task, width: int, **options: Any) -> None:
        super().__init__(**options)
        self.mean_OF = torch.zeros(task.num_outputs, width)
        self.known_O = torch.zeros(task.num_outputs, dtype=torch.uint8)

    @property
    def _expected(self) -> Signature:
        """What a reply's prototypes must be."""
        shape = tuple(self.mean_OF.shape)
        return {"sum": (shape, "float32"), "count": (shape[:1], "int32")}

    @override
    def shared_records(self) -> Mapping[str, RecordType]:
        """The prototypes, once there are any."""
        if not self.known_O.any():
            return {}
        return {words.PROTOTYPES: lazy_record({"mean": self.mean_OF, "known": self.known_O})}

    def check_reply(self, reply: Message) -> None:
        """Refuse prototypes that no honest client could have sent.

        Raises:
            ValueError: says what is wrong.
            ReplyError: arrays are missing, of another shape, or not finite.
        """
        if words.ARRAYS in reply.content:
            raise ValueError("weights must not travel in FedProto")
        record = reply.content.get(words.PROTOTYPES)
        if not isinstance(record, ArrayRecord):
            raise ValueError("the reply has no prototypes")
        check_arrays(words.PROTOTYPES, record, self._expected)
        told = from_record(record)
        metrics = reply.content.get(words.METRICS)
        examples = metrics.get(words.NUM_EXAMPLES) if isinstance(metrics, MetricRecord) else None
        if (
            type(examples) is not int
            or _implausible(told["sum"][None], told["count"][None], np.array([examples])).any()
        ):
            raise ValueError(
                f"prototypes/count={told['count'].tolist()}: must be 0 or more, {examples!r} "
                "(num-examples) in all; a class with 0 must have a sum of 0, and no sum may be "
                f"beyond {MAX_MAGNITUDE:g}"
            )

    def doubtful_replies(self, part: Part, nodes: Sequence[int]) -> NDArray[np.bool_]:
        """Which of the stacked replies, (P,), `check_reply` might refuse; whoever they are from."""
        del nodes
        stack = part.records.get(words.PROTOTYPES)
        examples = part.numbers(words.METRICS).get(words.NUM_EXAMPLES)
        if (
            not isinstance(stack, Stack)
            or stack.signature != self._expected
            or words.ARRAYS in part.records
            or examples is None
        ):
            return np.full(len(part.rows), True)
        return _implausible(stack.tensors["sum"], stack.tensors["count"], examples)

    @override
    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the prototypes; the models stay where they are."""
        good = self._good(Replies.of(replies))
        if len(good):
            total = good.total(words.PROTOTYPES)
            told_O = total["count"] > 0
            mean_OF = total["sum"] / total["count"].clamp_min(1).unsqueeze(1)
            self.mean_OF = torch.where(told_O.unsqueeze(1), mean_OF.float(), self.mean_OF)
            self.known_O = self.known_O | told_O
        return super().aggregate_train(server_round, good)

    def _good(self, came: Replies) -> Replies:
        """Replies that may be learned from; also holds where no guard stands before us."""
        nodes, doubtful = came.nodes, np.full(len(came), True)
        for part in came.parts:
            doubtful[part.rows] = self.doubtful_replies(part, nodes)
        good = ~doubtful
        for row in np.flatnonzero(doubtful).tolist():
            try:
                self.check_reply(came[row])
                good[row] = True
            except (ValueError, ReplyError) as error:
                _LOG.warning("node %d: %s", nodes[row], error)
        return came.select(np.flatnonzero(good))


def _implausible(sum_POF: Tensor, count_PO: Tensor, examples_P: NDArray[Any]) -> NDArray[np.bool_]:
    """Which replies, (P,), count samples that there are not, or have sums beyond all measure."""
    absurd_PO = ~(sum_POF.abs() <= MAX_MAGNITUDE).all(dim=2)
    nothing_PO = (count_PO == 0) & (sum_POF != 0).any(dim=2)
    wrong_P = (absurd_PO | nothing_PO | (count_PO < 0)).any(dim=1).cpu().numpy()
    found: NDArray[np.bool_] = wrong_P | (count_PO.sum(dim=1).cpu().numpy() != examples_P)
    return found
