"""FedRep: the server's side.

Collins et al., "Exploiting shared representations for personalized federated learning", arXiv
2102.07078, algorithm 1.

Only the model's body travels; each client's head is its own, see
`fedmoe.clients.algorithms.fedrep`. So there is no global model to be scored.

Deviation: the mean of the bodies weighs clients by their numbers of examples, as ours does
everywhere; the paper's is the plain mean.
"""

from flwr.app import ArrayRecord, ConfigRecord
from typing_extensions import override

from fedmoe.messages.arrays import signature_of
from fedmoe.messages.seams import RecordType
from fedmoe.strategies.base import StackedFedAvg


class FedRep(StackedFedAvg):
    """Average the clients' bodies by their numbers of examples."""

    evaluation_rides = True

    @override
    def _records(self, arrays: ArrayRecord, config: ConfigRecord) -> dict[str, RecordType]:
        self.has_global_model = bool(signature_of(arrays))  # a linear model is all head
        return super()._records(arrays, config)
