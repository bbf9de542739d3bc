"""Whose Gaussians are believed: what a client tells of the same samples must fit together.

`prototypes` and `traces` tell sums and traces of the samples that `gaussians` tell of, `spreads`
the products of some directions of these. So a client that lies in one of them, and not in the
others just so, contradicts itself; one that lies in all is held against the others, see
`fedmoe.insight.policies.robust`.

Letters: K clients, C of them in one basis, O classes, D features, r directions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedmoe.insight.memory import Memory
from fedmoe.insight.payloads.gaussians import totals_of
from fedmoe.insight.payloads.products import unpacked
from fedmoe.insight.policies.clustering import clusters_in, of_clients
from fedmoe.insight.policies.robust import vet_classes

Doubles = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
_ROUNDING = 1e-3  # what float32 may lose of sums, and more
_CONTRADICTS = "gaussians contradict what it tells else"


@dataclass(frozen=True)
class Believed:
    """How far clients' Gaussians are believed.

    Attributes:
        label_K: which clients are told of each other, from 0; -1 for who is told of nobody.
        weight_K: what all sums of a client are to be multiplied by, 0 to 1.
        suspects: by id, why a client is not believed.
    """

    label_K: NDArray[np.int64]
    weight_K: Doubles
    suspects: dict[int, str]


def believed_gaussians(
    memory: Memory,
    clients: NDArray[np.int64],
    told: Arrays,
    of: Literal["federation", "cluster"],
    bases: Sequence[tuple[NDArray[np.bool_], Doubles]] = (),
) -> Believed:
    """Hold clients' Gaussians against their own words and against the others'.

    Args:
        memory: where else they told of the same samples.
        clients: (K,) ids.
        told: their `gaussians`, (K, ...) by name.
        of: whether all are told of each other, or each cluster for itself.
        bases: which clients, (K,), told `spreads` in which directions, (D, r).
    """
    count_KO, sum_KOD = (told[f"gaussian_{n}"].astype(np.float64) for n in ("count", "sum"))
    total_KO = totals_of(told).astype(np.float64)
    trace_KO = total_KO - (sum_KOD**2).sum(axis=2) / np.maximum(count_KO, 1)
    vetted = vet_classes(count_KO, sum_KOD, np.maximum(trace_KO, 0))
    suspects = {int(clients[place]): why for place, why in vetted.suspects.items()}
    label_K, weight_K = np.zeros(len(clients), dtype=np.int64), vetted.weight_K
    if of == "cluster":
        ids, found = clusters_in(memory)
        label_K = of_clients(clients, ids, found.label_K, -1)
        others_K = of_clients(clients, ids, found.weight_K, 0.0)
        weight_K, suspects = np.minimum(weight_K, others_K), found.suspects | suspects
    odd_K = _other_sums(memory, clients, count_KO, sum_KOD, total_KO, trace_KO)
    odd_K |= _other_products(memory, clients, (count_KO, sum_KOD, total_KO), bases)
    suspects |= dict.fromkeys(clients[odd_K].tolist(), _CONTRADICTS)
    return Believed(label_K, np.where(odd_K, 0.0, weight_K), suspects)


def _other_sums(
    memory: Memory,
    clients: NDArray[np.int64],
    count_KO: Doubles,
    sum_KOD: Doubles,
    total_KO: Doubles,
    trace_KO: Doubles,
) -> NDArray[np.bool_]:
    """Who told other numbers, sums or traces of the same classes, (K,)."""
    odd_K = np.full(len(clients), False)
    for name, own in (
        ("prototype_count", count_KO), ("prototype_sum", sum_KOD), ("class_trace", trace_KO)
    ):  # fmt: skip
        has_K, other = _rows(memory, name, clients, own.shape[1:])
        away_KO = np.abs(own - other).reshape(*count_KO.shape, -1).max(axis=2)
        scale_KO = {
            "prototype_count": np.zeros_like(count_KO),
            "prototype_sum": np.sqrt(count_KO * total_KO),
        }.get(name, total_KO)
        odd_KO = (count_KO > 0) & (away_KO > _ROUNDING * scale_KO)
        if name == "prototype_count":  # of other classes, where fewer samples are enough or too few
            odd_KO &= other > 0
        odd_K |= has_K & odd_KO.any(axis=1)
    return odd_K


def _other_products(
    memory: Memory,
    clients: NDArray[np.int64],
    sums: tuple[Doubles, Doubles, Doubles],
    bases: Sequence[tuple[NDArray[np.bool_], Doubles]],
) -> NDArray[np.bool_]:
    """Who told squares in some directions that no samples of such sums have, (K,).

    Args:
        memory: where the products are.
        clients: (K,) ids.
        sums: numbers, sums, and sums of |x|^2 of each class.
        bases: in which directions which clients told them.
    """
    odd_K = np.full(len(clients), False)
    table = memory.latest.get("spread_products")
    if table is None:
        return odd_K
    count_KO, sum_KOD, total_KO = sums
    for told_K, basis_Dr in bases:
        _, packed = _rows(memory, "spread_products", clients[told_K], table.rows.shape[1:])
        square_COr = np.diagonal(unpacked(packed), axis1=2, axis2=3)
        # No more than in all directions; no less than of the mean alone, by Cauchy and Schwarz.
        slack_CO = _ROUNDING * total_KO[told_K]
        least_COr = (sum_KOD[told_K] @ basis_Dr) ** 2 / np.maximum(count_KO[told_K], 1)[..., None]
        odd_CO = square_COr.sum(axis=2) > total_KO[told_K] + slack_CO
        odd_CO |= (square_COr < least_COr - slack_CO[..., None]).any(axis=2)
        odd_K[told_K] = odd_CO.any(axis=1)
    return odd_K


def _rows(
    memory: Memory, name: str, clients: NDArray[np.int64], shape: tuple[int, ...]
) -> tuple[NDArray[np.bool_], Doubles]:
    """Who told an array, (K,), and the arrays, (K, ...); 0 of who did not."""
    rows = np.zeros((len(clients), *shape))
    table = memory.latest.get(name)
    has_K = np.array([table is not None and table.has(one) for one in clients.tolist()], dtype=bool)
    if table is not None and has_K.any():
        rows[has_K] = table.of(clients[has_K].tolist())
    return has_K, rows
