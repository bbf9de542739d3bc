"""What a router did in a round, from small sums that every client takes on its own samples.

`docs/router-metrics.md` has each formula and says how to read it. The sums are taken by
`router_sums`.

Letters: C clients, O classes (1 for regression), E experts.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

_DEAD = 0.1  # an expert with less than this part of its even share does hardly anything


class ClientSums(NamedTuple):
    """What the server is told of each client's evaluation samples; all of it are sums over them.

    Attributes:
        load: (C, E) slots: how often an expert answered.
        class_load: (C, O, E) mixing weights, by class of the sample. A regression has one row.
        dropped: (C,) samples that no expert answered.
        gate_entropy: (C,) entropy of the gate's probabilities in nats.
        judged: (C,) samples that were also answered under random routing: all or none.
        errors: (C,) wrong answers among these, or squared errors in a regression.
        random_errors: (C,) the same under random routing.
        similarity: (C,) mean cosine between two experts' answers, times `judged`.
        compared: (C,) samples whose main expert at an earlier evaluation is known.
        changed: (C,) how many of these have another main expert now.
    """

    load: Table
    class_load: Table
    dropped: Table
    gate_entropy: Table
    judged: Table
    errors: Table
    random_errors: Table
    similarity: Table
    compared: Table
    changed: Table


TOTALS = ClientSums._fields[2:]  # one number a client, which travel as one array in this order


@dataclass(frozen=True, kw_only=True)
class RouterMetrics:
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
        return asdict(self)


def router_metrics(sums: ClientSums, samples: int) -> RouterMetrics | None:
    """A round's numbers from all clients' sums.

    Args:
        sums: of the clients that were evaluated; finite, and not negative but for `similarity`.
        samples: how many evaluation samples these have; `None` comes back if there are none.
    """
    if not samples:
        return None
    experts = sums.load.shape[1]
    load_E, weight_COE = sums.load.sum(axis=0), np.asarray(sums.class_load, np.float64)
    weight_E = weight_COE.sum(axis=(0, 1))
    answered = weight_E.sum() > 0 and load_E.sum() > 0
    totals = {name: float(getattr(sums, name).sum()) for name in TOTALS}
    information = _information(weight_COE) if answered else (None, None, None)
    errors = totals["random_errors"] - totals["errors"]
    return RouterMetrics(
        samples=samples,
        load=_shares(load_E).tolist() if answered else None,
        importance=_shares(weight_E).tolist() if answered else None,
        load_entropy=_evenness(load_E) if answered else None,
        importance_entropy=_evenness(weight_E) if answered else None,
        max_violation=float(load_E.max() / load_E.mean() - 1) if answered else None,
        dead_experts=int((_shares(weight_E) < _DEAD / experts).sum()) if answered else None,
        drop_rate=totals["dropped"] / samples,
        gate_entropy=totals["gate_entropy"] / samples / math.log(max(experts, 2)),
        client_information=information[0],
        class_information=information[1],
        churn=_ratio(totals["changed"], totals["compared"]),
        drift=information[2],
        similarity=_ratio(totals["similarity"], totals["judged"]) if experts > 1 else None,
        necessity=_ratio(errors, totals["judged"]),
    )


def client_shares(sums: ClientSums) -> Table:
    """Each expert's share of each client's mixing weight, (C, E); NaN for one without samples."""
    weight_CE = sums.class_load.sum(axis=1, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        shares_CE: Table = weight_CE / weight_CE.sum(axis=1, keepdims=True)
    return shares_CE


def _information(weight_COE: Table) -> tuple[float, float | None, float | None]:
    """Of client and expert, of class and expert, and of client and class given the expert.

    The last is the clients' Jensen-Shannon divergence of an expert's histograms of classes, with
    each client weighing as much as it uses the expert, averaged over experts by their weight.
    With S = sum w log w of a table of weights that sum to N, an entropy is log N - S / N.
    """
    weight_CE, weight_OE = weight_COE.sum(axis=1), weight_COE.sum(axis=0)
    weight_E = weight_OE.sum(axis=0)
    total = weight_E.sum()
    both_CE, both_E = _log_sum(weight_CE), _log_sum(weight_E)
    own = both_CE - _log_sum(weight_CE.sum(axis=1)) - both_E
    client = _at_least_zero(math.log(total) + own / total)
    if len(weight_OE) == 1:
        return client, None, None
    both_OE = _log_sum(weight_OE)
    own = both_OE - _log_sum(weight_OE.sum(axis=1)) - both_E
    drift = (_log_sum(weight_COE) - both_CE - both_OE + both_E) / total
    return client, _at_least_zero(math.log(total) + own / total), _at_least_zero(drift)


def _log_sum(weight: Table) -> float:
    """The sum of w log w, where 0 log 0 = 0."""
    return float((weight * np.log(np.where(weight > 0, weight, 1.0))).sum())


def _at_least_zero(value: float) -> float:
    """What only rounding has made negative."""
    return max(float(value), 0.0)


def _shares(values_E: Table) -> Table:
    shares_E: Table = values_E / values_E.sum()
    return shares_E


def _evenness(values_E: Table) -> float:
    """Entropy of the shares over log E; a single expert is even."""
    if len(values_E) == 1:
        return 1.0
    return _at_least_zero(-_log_sum(_shares(values_E)) / math.log(len(values_E)))


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
