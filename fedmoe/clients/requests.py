"""What a client is asked to do and what it answers, free of any message format.

Flower's messages (`answer.py`) and its NumPy interface (`numpy_client.py`) are both turned into
these.
"""

from typing import NamedTuple

from flwr.app import ArrayRecord, RecordDict

from fedmoe.insight import Guidance, Insight

MODEL = "model"  # keys of a client's private state
OPTIMIZER = "optimizer"


class TrainRequest(NamedTuple):
    """Train on the client's own data.

    Attributes:
        client: the client's partition.
        round: of the federation.
        state: the client's private records; the model and the optimiser may live here.
        arrays: the model to start from; `None` goes on with the client's own.
        guidance: what the MetaLearner said, or `None`.
        proximal_mu: weight of FedProx's term.
        payloads: what to put into the insight; `None` if no insight is wanted.
        prototype_min_count: classes with fewer samples send no prototype.
    """

    client: int
    round: int
    state: RecordDict
    arrays: ArrayRecord | None = None
    guidance: Guidance | None = None
    proximal_mu: float = 0.0
    payloads: tuple[str, ...] | None = None
    prototype_min_count: int = 1

    def shape(self) -> tuple[object, ...]:
        """Requests of equal shape can be trained as one cohort."""
        guided = tuple(sorted(self.guidance.arrays())) if self.guidance else ()
        return (
            self.round, self.arrays is None, guided, self.proximal_mu, self.payloads,
            self.prototype_min_count, OPTIMIZER in self.state,
        )  # fmt: skip


class Update(NamedTuple):
    """What training gave.

    Attributes:
        arrays: the trained model, one row of the cohort's stack.
        num_examples: samples trained on.
        final_loss: mean loss over the last epoch.
        insight: if one was asked for.
    """

    arrays: ArrayRecord
    num_examples: int
    final_loss: float
    insight: Insight | None


class EvaluateRequest(NamedTuple):
    """Score a model on the client's validation and test data.

    Attributes:
        client: the client's partition.
        state: the client's private records.
        arrays: the global model, or `None` if there is none.
    """

    client: int
    state: RecordDict
    arrays: ArrayRecord | None = None
