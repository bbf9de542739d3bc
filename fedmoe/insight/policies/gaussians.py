"""Gaussians of classes: what a class looks like, and how it varies, over clients that mean it.

Clients send number, sum and pooled products of their inputs by class (`gaussians`); the server
returns the directions in which the classes of their cluster differ most, in these the clients
tell how each of their classes spreads (`spreads`), and the server returns each class's mean and
covariance: two trips, each made once. A client then *rehearses*: in every round it draws fresh
samples of the classes, labels them by Bayes' rule, and adds the model's cross-entropy on them to
its own loss (`fedmoe.training.class_gaussians`).

After CCVR (arXiv 2106.05001) and FedPFT (arXiv 2402.01862), whose servers draw from Gaussians of
a pre-trained extractor's features and train one head for all. Deviations: clients draw, each for
its own model and by its own shares of the classes; of inputs, as there is no common extractor;
clusters of clients that mean the same by their classes have Gaussians of their own; covariances
are told in few directions, where one told whole would cost more than the model; labels are soft.

With `insight.covariance=diagonal` there are no directions and no second trip: each class has its
features' variances. Where clients join later, directions are found anew when there are twice as
many samples as they were found from, and the Gaussians with a tenth more: each change has to be
told to all.

What it tells: see the payloads; and to clients the moments of their cluster's samples.

Letters: K clients, O classes, D features, r directions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fedmoe.insight.gaussians import ClassSums, Doubles, spread_of
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.latest import Latest
from fedmoe.insight.memory import Memory
from fedmoe.insight.payloads.products import packed, unpacked
from fedmoe.insight.policies.base import NOTHING, Policy, State
from fedmoe.insight.policies.believing import believed_gaussians
from fedmoe.insight.policies.clustering import CLUSTERED_BY, renamed
from fedmoe.schema import GaussiansPolicyConfig

_NEW_DIRECTIONS, _NEW_MOMENTS = 2.0, 1.1  # times the samples that the old ones were made of
_PRODUCTS = "spread_products"


@dataclass(frozen=True)
class _Group:
    """What a cluster is told.

    Attributes:
        basis: a number that no other directions have.
        found_from: samples that the directions, or variances, were found from.
        spread_from: samples of the clients that had told how classes spread.
        advice: what its clients are told.
    """

    basis: int = -1
    found_from: float = 0.0
    spread_from: float = 0.0
    advice: Guidance = NOTHING


_UNTOLD = _Group()


class Gaussians(Policy):
    """The Gaussians of the classes of a client's cluster, or of the federation."""

    name = "gaussians"

    def __init__(self, config: GaussiansPolicyConfig) -> None:
        super().__init__()
        self.config = config
        clustered_by = CLUSTERED_BY if config.of == "cluster" else ()
        self.reads = (*clustered_by, "gaussians", "spreads")
        self._groups: dict[int, _Group] = {}
        self._group_of: dict[int, int] = {}  # by client
        self._told_in: dict[int, int] = {}  # by client: the basis in which it last told products
        self._bases = 0
        self._learned: tuple[object, ...] = ()

    @override
    def learn(self, memory: Memory, round: int) -> None:
        """Find what there is to be told, if clients have told something new."""
        self._note_bases(memory, round)
        names = sorted(name for name in memory.latest if name.startswith("gaussian_"))
        revision = memory.revision(*names, _PRODUCTS)
        if not names or self._learned == revision:
            return
        self._learned = revision
        clients, told = memory.collect(*names)
        believed = believed_gaussians(
            memory, clients, told, self.config.of, self._bases_of(memory, clients)
        )
        self.suspects, weight_K = believed.suspects, believed.weight_K
        label_K = renamed(clients, believed.label_K, self._group_of)
        self._group_of = dict(zip(clients.tolist(), label_K.tolist(), strict=True))
        groups = {}
        for label in sorted(set(label_K[label_K >= 0].tolist())):
            own_K = label_K == label
            groups[label] = self._group(
                self._groups.get(label, _UNTOLD), memory, clients[own_K], weight_K[own_K],
                {n: np.einsum("k...,k->k...", r[own_K], weight_K[own_K]) for n, r in told.items()},
            )  # fmt: skip
        self._groups = groups
        self.decisions = {
            "clients": len(clients), "clusters": len(self._groups),
            "samples": [group.found_from for group in self._groups.values()],
            "samples_with_products": [group.spread_from for group in self._groups.values()],
        }  # fmt: skip

    def _note_bases(self, memory: Memory, round: int) -> None:
        """Who told in this round did so in the directions that it had been told by then."""
        numbers = memory.of_round(round)
        for client in [] if numbers is None else numbers["client_id"].tolist():
            if (label := self._group_of.get(client, -1)) in self._groups:
                self._told_in[client] = self._groups[label].basis

    def _group(
        self,
        before: _Group,
        memory: Memory,
        clients: NDArray[np.int64],
        weight_K: Doubles,
        told: Mapping[str, NDArray[Any]],
    ) -> _Group:
        """What a cluster is to be told from now on."""
        sums = ClassSums.of(told)
        samples = float(sums.count_O.sum())
        if not samples:  # nobody is believed
            return before
        if not sums.has_directions:
            if samples <= _NEW_MOMENTS * before.found_from:
                return before
            own = {"gaussian_residual": sums.variance_OD()}
            return _Group(found_from=samples, advice=self._moments(before, sums, own))
        group = before
        if samples > _NEW_DIRECTIONS * before.found_from:
            group = self._with_directions(before, sums)
        basis_Dr = np.asarray(group.advice.parts["gaussian_basis"], dtype=np.float64)
        own_sums, products_Orr = sums, sums.products_Orr(basis_Dr)
        if products_Orr is None:
            chosen_K = self._has_told(group, memory, clients)
            if not chosen_K.any():
                return group
            products_COR = memory.latest[_PRODUCTS].of(clients[chosen_K].tolist())
            products_Orr = unpacked(np.einsum("cor,c->or", products_COR, weight_K[chosen_K]))
            own_sums = ClassSums.of({name: rows[chosen_K] for name, rows in told.items()})
        spread_from = float(own_sums.count_O.sum())
        if spread_from <= _NEW_MOMENTS * group.spread_from:
            return group
        spread_OR, pooled_rr = spread_of(own_sums, basis_Dr, products_Orr)
        advice = self._in_directions(group, sums, basis_Dr, spread_OR, pooled_rr)
        return replace(group, spread_from=spread_from, advice=advice)

    def _with_directions(self, before: _Group, sums: ClassSums) -> _Group:
        """New directions; until products are told in these, all classes spread alike.

        Who was told nothing yet is told the directions alone, since the rest soon follows.
        """
        self._bases += 1
        basis_Dr, variance_r = sums.directions(self.setting.rank, self.setting.seed)
        group = _Group(basis=self._bases, found_from=float(sums.count_O.sum()))
        if not before.spread_from:
            alone = {"gaussian_basis": basis_Dr.astype(np.float32)}
            return replace(group, advice=before.advice.with_parts(alone))
        pooled_rr = np.diag(variance_r)
        spread_OR = np.tile(packed(pooled_rr), (len(sums.count_O), 1))
        advice = self._in_directions(before, sums, basis_Dr, spread_OR, pooled_rr)
        return replace(group, advice=advice)

    def _bases_of(
        self, memory: Memory, clients: NDArray[np.int64]
    ) -> list[tuple[NDArray[np.bool_], Doubles]]:
        """Who told products, (K,), in which directions."""
        return [
            (told_K, np.asarray(group.advice.parts["gaussian_basis"], dtype=np.float64))
            for group in self._groups.values()
            if group.basis >= 0 and (told_K := self._has_told(group, memory, clients)).any()
        ]

    def _has_told(
        self, group: _Group, memory: Memory, clients: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Who told products in the group's directions, (K,)."""
        table = memory.latest.get(_PRODUCTS, Latest())
        return np.array(
            [table.has(c) and self._told_in.get(c) == group.basis for c in clients.tolist()]
        )

    def _in_directions(
        self,
        before: _Group,
        sums: ClassSums,
        basis_Dr: Doubles,
        spread_OR: Doubles,
        pooled_rr: Doubles,
    ) -> Guidance:
        inside_D = np.einsum("di,ij,dj->d", basis_Dr, pooled_rr, basis_Dr)
        own = {
            "gaussian_basis": basis_Dr,
            "gaussian_spread": spread_OR,
            "gaussian_residual": np.maximum(sums.pooled_variance_D() - inside_D, 0),
        }
        return self._moments(before, sums, own)

    def _moments(self, before: _Group, sums: ClassSums, own: Mapping[str, Doubles]) -> Guidance:
        """The parts that there are in any case, and others."""
        known_O = sums.known_O
        parts = {
            "gaussian_means": sums.mean_OD,
            "gaussian_weight": self.config.strength * known_O / max(int(known_O.sum()), 1),
            **own,
        }
        return before.advice.with_parts({n: part.astype(np.float32) for n, part in parts.items()})

    @override
    def advise(self, client_id: int) -> Guidance:
        default = 0 if self.config.of == "federation" else -1
        return self._groups.get(self._group_of.get(client_id, default), _UNTOLD).advice

    @override
    def state(self) -> State:
        arrays = {
            f"{label}/{name}": part
            for label, group in self._groups.items()
            for name, part in group.advice.parts.items()
        }
        for name, by_client in (("group_of", self._group_of), ("told_in", self._told_in)):
            arrays[name] = np.array(list(by_client.items()), dtype=np.int64)
        groups = [
            [label, group.basis, group.found_from, group.spread_from]
            for label, group in self._groups.items()
        ]
        return arrays, {"groups": groups, "bases": self._bases}

    @override
    def restore(
        self, memory: Memory, arrays: Mapping[str, NDArray[Any]], values: Mapping[str, Any]
    ) -> None:
        self._group_of = dict(arrays["group_of"].reshape(-1, 2).tolist())
        self._told_in = dict(arrays["told_in"].reshape(-1, 2).tolist())
        self._bases, self._groups, self._learned = values["bases"], {}, ()
        for label, basis, found_from, spread_from in values["groups"]:
            start = f"{label}/"
            parts = {n.removeprefix(start): a for n, a in arrays.items() if n.startswith(start)}
            self._groups[label] = _Group(basis, found_from, spread_from, Guidance(parts))
