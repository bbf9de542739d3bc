"""What a router did in a round, from small sums that every client takes on its own samples.

`docs/router-metrics.md` has each formula and says how to read it. The sums are taken by
`router_sums`, and travel as one vector.

Letters: C clients, O classes (1 for regression), E experts, T totals, J numbers of a client.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

MOST = 1e12  # of one sample's error; what an expert makes that nobody uses must stay finite
_DEAD = 0.1  # an expert with less than this part of its even share does hardly anything

# One number a client each, in this order: samples that an expert answered; the entropy of the
# gate's probabilities in nats; samples whose main expert at the last evaluation is known, and how
# many of these have another one now; wrong answers (squared errors in a regression), and the same
# under random routing; the squared length of the sum of the experts' answers, each of length 1.
TOTALS = (
    "answered", "gate_entropy", "compared", "changed", "errors", "random_errors", "similarity"
)  # fmt: skip


class ClientSums(NamedTuple):
    """What the server is told of each client's evaluation samples.

    Attributes:
        load_CE: slots: how often an expert answered.
        totals_CT: see `TOTALS`.
        class_load_COE: mixing weights, by class of the sample; a regression has one row.
    """

    load_CE: Table
    totals_CT: Table
    class_load_COE: Table


@dataclass(frozen=True, kw_only=True)
class RouterKind:
    """What the sums of one kind of model are about.

    Attributes:
        num_experts: E.
        num_classes: O; 1 for regression.
        has_classes: whether errors are wrong answers, and not squares.
        has_answers: whether each expert's own answers are known; the last three totals are 0
            otherwise.
    """

    num_experts: int
    num_classes: int
    has_classes: bool
    has_answers: bool

    @property
    def size(self) -> int:
        """J."""
        return self.num_experts * (1 + self.num_classes) + len(TOTALS)

    def split(self, flat_CJ: NDArray[Any]) -> ClientSums:
        """The sums from what travels."""
        first, second = self.num_experts, self.num_experts + len(TOTALS)
        # Copied, so that each lies in one piece: NumPy sums strided arrays several times slower.
        load_CE, totals_CT, class_load_CJ = (
            part.astype(np.float64, order="C")
            for part in (flat_CJ[:, :first], flat_CJ[:, first:second], flat_CJ[:, second:])
        )
        shape = (len(flat_CJ), self.num_classes, self.num_experts)
        return ClientSums(load_CE, totals_CT, class_load_CJ.reshape(shape))


class RouterMetrics(NamedTuple):
    """A round's numbers; `None` where there was nothing to tell them from.

    Attributes:
        samples: that were routed, of all clients together.
        load: each expert's share of the slots; sums to 1.
        importance: each expert's share of the mixing weight; sums to 1.
        load_entropy: entropy of `load` over log E: 0 all to one, 1 even.
        importance_entropy: the same of `importance`.
        max_violation: MaxVio, the largest load over the mean, less 1: 0 even, E - 1 all to one.
        dead_experts: how many have an importance below 0.1 / E.
        drop_rate: share of samples that no expert answered.
        gate_entropy: mean entropy of the gate's probabilities over log E: 0 certain, 1 uniform.
        client_information: mutual information of client and expert, in nats.
        class_information: mutual information of class and expert, in nats.
        churn: share of samples whose main expert changed since their client's last evaluation.
        drift: Jensen-Shannon divergence between clients of an expert's classes, in nats.
        similarity: mean cosine between two experts' answers: 1 if they are one function.
        necessity: what is lost under random routing: accuracy, or rise of the mean squared error.
    """

    samples: int
    load: list[float] | None
    importance: list[float] | None
    load_entropy: float | None
    importance_entropy: float | None
    max_violation: float | None
    dead_experts: int | None
    drop_rate: float
    gate_entropy: float
    client_information: float | None
    class_information: float | None
    churn: float | None
    drift: float | None
    similarity: float | None
    necessity: float | None

    def as_json(self) -> dict[str, Any]:
        """The numbers by name."""
        return self._asdict()


def router_metrics(
    kind: RouterKind, sums: ClientSums, count_C: NDArray[Any]
) -> RouterMetrics | None:
    """A round's numbers from all clients' sums.

    Args:
        kind: of the model.
        sums: of the clients that were evaluated; finite and not negative.
        count_C: how many evaluation samples each has; `None` comes back if there are none.
    """
    samples, experts = int(count_C.sum()), kind.num_experts
    if not samples:
        return None
    load_E, weight_CE = sums.load_CE.sum(axis=0), np.einsum("coe->ce", sums.class_load_COE)
    weight_E = weight_CE.sum(axis=0)
    answered = weight_E.sum() > 0 and load_E.sum() > 0
    share_E = weight_E / weight_E.sum() if answered else weight_E
    totals = dict(zip(TOTALS, sums.totals_CT.sum(axis=0).tolist(), strict=True))
    worse = totals["random_errors"] - totals["errors"]
    # The square of a sum of unit vectors holds each with itself, and each pair's cosine twice.
    alike, pairs = totals["similarity"] / samples - experts, experts * (experts - 1)
    client, by_class, drift = (
        _information(sums.class_load_COE, weight_CE, weight_E) if answered else (None, None, None)
    )
    return RouterMetrics(
        samples=samples,
        load=(load_E / load_E.sum()).tolist() if answered else None,
        importance=share_E.tolist() if answered else None,
        load_entropy=_evenness(load_E) if answered else None,
        importance_entropy=_evenness(weight_E) if answered else None,
        max_violation=float(load_E.max() / load_E.mean() - 1) if answered else None,
        dead_experts=int((share_E < _DEAD / experts).sum()) if answered else None,
        drop_rate=1 - totals["answered"] / samples,
        gate_entropy=totals["gate_entropy"] / samples / math.log(max(experts, 2)),
        client_information=client,
        class_information=by_class,
        churn=totals["changed"] / totals["compared"] if totals["compared"] else None,
        drift=drift,
        similarity=alike / pairs if kind.has_answers and pairs else None,
        necessity=worse / samples if kind.has_answers else None,
    )


def client_shares(sums: ClientSums) -> Table:
    """Each expert's share of each client's mixing weight, (C, E); NaN for one without samples."""
    weight_CE = sums.class_load_COE.sum(axis=1)
    with np.errstate(invalid="ignore"):
        shares_CE: Table = weight_CE / weight_CE.sum(axis=1, keepdims=True)
    return shares_CE


def _information(
    weight_COE: Table, weight_CE: Table, weight_E: Table
) -> tuple[float, float | None, float | None]:
    """Of client and expert, of class and expert, and of client and class given the expert.

    The last is the clients' Jensen-Shannon divergence of an expert's histograms of classes, with
    each client weighing as much as it uses the expert, averaged over experts by their weight.
    With S = sum w log w of a table of weights that sum to N, an entropy is log N - S / N.
    """
    total = float(weight_E.sum())
    both_CE, both_E = _log_sum(weight_CE), _log_sum(weight_E)
    own = both_CE - _log_sum(weight_CE.sum(axis=1)) - both_E
    client = max(0.0, math.log(total) + own / total)  # only rounding makes them negative
    if weight_COE.shape[1] == 1:
        return client, None, None
    weight_OE = weight_COE.sum(axis=0)
    both_OE = _log_sum(weight_OE)
    own = both_OE - _log_sum(weight_OE.sum(axis=1)) - both_E
    drift = (_log_sum(weight_COE) - both_CE - both_OE + both_E) / total
    return client, max(0.0, math.log(total) + own / total), max(0.0, drift)


def _log_sum(weight: Table) -> float:
    """The sum of w log w, where 0 log 0 = 0."""
    flat = weight.ravel()
    return float(flat @ np.log(np.where(flat > 0, flat, 1.0)))


def _evenness(values_E: Table) -> float:
    """Entropy of the shares over log E; a single expert is even."""
    if len(values_E) == 1:
        return 1.0
    return max(0.0, -_log_sum(values_E / values_E.sum()) / math.log(len(values_E)))
