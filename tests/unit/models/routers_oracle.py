"""Every router written out for one batch of one client: loops over samples and experts.

Scalars are zero-dimensional tensors in double precision, so that autograd gives the oracle's
derivative; nothing else of torch is used, and nothing of the code under test but the names.
"""

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import torch
from torch import Tensor

from fedmoe.models import Parameters
from fedmoe.models.routers import (
    ClientRouter,
    EnsembleRouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    NoisyRouter,
    PriorRouter,
    Router,
    RuleRouter,
    SoftmaxRouter,
    SwitchRouter,
)

MASK = 2**64 - 1
FAR = -1e4  # the logit of an expert that a fixed choice left out


class Batch(NamedTuple):
    """One client's batch.

    Attributes:
        x_BD: its samples.
        weight_B: their shares; `None` at evaluation.
        key: of the step.
    """

    x_BD: Tensor
    weight_B: Sequence[float] | None = None
    key: int = 0


class Decision(NamedTuple):
    """What a router says of one sample: a list over the experts each."""

    weight: list[Tensor]
    probs: list[Tensor]
    chosen: list[Tensor]
    logits: list[Tensor]
    demand: list[Tensor] | None = None


def number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def naive_route(router: Router, params: Parameters, batch: Batch) -> list[Decision]:
    """One decision per sample. The parameters have the router's own names, without clients."""
    if isinstance(router, ClientRouter | RuleRouter):
        return [_certain(router, e) for e in _fixed_choice(router, params, batch)]
    logits = [_logits(router, params, x_D) for x_D in batch.x_BD]
    clean = logits
    if isinstance(router, NoisyRouter) and batch.weight_B is not None:
        noise = [
            [_deviation(params, e, x_D) for e in range(router.num_experts)] for x_D in batch.x_BD
        ]
        logits = [
            [z + noise[b][e] * _normal(batch.key, e, b) for e, z in enumerate(own)]
            for b, own in enumerate(clean)
        ]
    probs = [_softmax(own) for own in logits]
    chosen = _chosen(router, params, probs, batch)
    decisions = []
    for b, own in enumerate(probs):
        if isinstance(router, SwitchRouter):
            weight = [p if e in chosen[b] else number(0) for e, p in enumerate(own)]
        else:
            kept = [logits[b][e] for e in sorted(chosen[b])]
            shares = iter(_softmax(kept))
            weight = [next(shares) if e in chosen[b] else number(0) for e in range(len(own))]
        flags = [number(e in chosen[b]) for e in range(len(own))]
        decisions.append(Decision(weight, own, flags, logits[b]))
    if isinstance(router, SwitchRouter):
        wanted = [_best(own, 1) for own in probs]
        return [
            d._replace(demand=[number(e in w) for e in range(router.num_experts)])
            for d, w in zip(decisions, wanted, strict=True)
        ]
    if isinstance(router, NoisyRouter) and batch.weight_B is not None:
        return [
            d._replace(demand=_smooth_load(router, clean[b], d.logits, noise[b]))
            for b, d in enumerate(decisions)
        ]
    return decisions


def _certain(router: Router, expert: int) -> Decision:
    one = [number(e == expert) for e in range(router.num_experts)]
    return Decision(one, one, one, [number(0 if e == expert else FAR) for e in range(len(one))])


def _fixed_choice(router: Router, params: Parameters, batch: Batch) -> list[int]:
    if isinstance(router, ClientRouter):
        scores = params["assignment"].tolist()
        return [scores.index(max(scores))] * len(batch.x_BD)
    assert isinstance(router, RuleRouter)
    found = []
    for b, x_D in enumerate(batch.x_BD.tolist()):
        mean = sum(x_D) / len(x_D)
        statistic = {
            "mean": mean,
            "variance": sum((x - mean) ** 2 for x in x_D) / len(x_D),
            "norm": math.sqrt(sum(x * x for x in x_D)),
        }
        if router.rule in statistic:
            found.append(sum(statistic[router.rule] > edge for edge in router.thresholds))
        elif batch.weight_B is None:
            found.append(int(_uniform(_hash_of_sample(x_D)) * router.num_experts))
        elif router.rule == "round_robin":
            found.append(b % router.num_experts)
        else:
            found.append(int(_uniform(_fold(batch.key, b)) * router.num_experts))
    return found


def _logits(router: Router, params: Parameters, x_D: Tensor) -> list[Tensor]:
    logits = [number(0) for _ in range(router.num_experts)]
    if isinstance(router, EnsembleRouter):
        votes = router.votes or [1.0] * router.num_experts
        return [number(math.log(vote)) for vote in votes]
    for e in range(router.num_experts):
        if "weight" in params:
            for d in range(len(x_D)):
                logits[e] = logits[e] + params["weight"][e, d] * x_D[d]
            logits[e] = logits[e] + params["bias"][e]
        if isinstance(router, PriorRouter):
            logits[e] = logits[e] + params["prior"][e]
    return logits


def _softmax(logits: list[Tensor]) -> list[Tensor]:
    most = max((z.item() for z in logits), default=0.0)
    scores = [(z - most).exp() for z in logits]
    total = sum(scores, start=number(0))
    return [score / total for score in scores]


def _best(score: list[Tensor], top_k: int) -> set[int]:
    """The numbers of the largest; of equals the first."""
    values = [s.item() for s in score]
    return set(sorted(range(len(values)), key=lambda e: (-values[e], e))[:top_k])


def _chosen(
    router: Router, params: Parameters, probs: list[list[Tensor]], batch: Batch
) -> list[set[int]]:
    """The experts of each sample."""
    experts = range(router.num_experts)
    training = batch.weight_B is not None
    real = [b for b, w in enumerate(batch.weight_B or ()) if w > 0]
    if isinstance(router, ExpertChoiceRouter) and training:
        found: list[set[int]] = [set() for _ in probs]
        for e in experts:
            liking = sorted(real, key=lambda b: (-probs[b][e].item(), b))
            for b in liking[: _room(router.capacity_factor, len(real), router.num_experts)]:
                found[b].add(e)
        return found
    if isinstance(router, SwitchRouter):
        found = [_best(own, 1) for own in probs]
        if training:
            left = [_room(router.capacity_factor, len(real), router.num_experts)] * len(experts)
            for b in real:
                (e,) = found[b]
                left[e] -= 1
                if left[e] < 0:
                    found[b] = set()
        return found
    if isinstance(router, LossFreeRouter):
        bias = params["balance_bias"].detach()
        return [
            _best([p + b for p, b in zip(own, bias, strict=True)], router.top_k) for own in probs
        ]
    top_k = router.num_experts
    if isinstance(router, SoftmaxRouter | NoisyRouter | ExpertChoiceRouter):
        top_k = router.top_k
    return [_best(own, top_k) for own in probs]


def _room(factor: float, samples: int, experts: int) -> int:
    return math.ceil(Fraction(str(factor)) * samples / experts)


# ----------------------------------------------------------------------------- noise


def _deviation(params: Parameters, e: int, x_D: Tensor) -> Tensor:
    z = number(0)
    for d in range(len(x_D)):
        z = z + params["noise_weight"][e, d] * x_D[d]
    return (1 + z.exp()).log() + 0.01


def _smooth_load(
    router: NoisyRouter, clean: list[Tensor], noisy: list[Tensor], deviation: list[Tensor]
) -> list[Tensor]:
    """P(x, i): the standard normal's distribution function of the distance to the threshold."""
    found = []
    for e in range(len(clean)):
        others = sorted((noisy[j] for j in range(len(noisy)) if j != e), key=lambda z: -z.item())
        if len(others) < router.top_k:
            found.append(number(1))
            continue
        distance = (clean[e] - others[router.top_k - 1]) / deviation[e]
        found.append((1 + (distance / math.sqrt(2)).erf()) / 2)
    return found


def _fold(state: int, word: int) -> int:
    """One round of SplitMix64's finaliser, on unsigned numbers."""
    z = ((word & MASK ^ state & MASK) + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


def _uniform(bits: int) -> float:
    return ((bits >> 12) + 0.5) / 2**52


def _normal(key: int, e: int, b: int) -> float:
    return NormalDist().inv_cdf(_uniform(_fold(_fold(key, e), b)))


def _hash_of_sample(x_D: list[float]) -> int:
    total = 0
    for d, value in enumerate(x_D):
        (bits,) = struct.unpack("<i", struct.pack("<f", value + 0.0))
        total += bits * (_fold(0, d) | 1)
    return _fold(total & MASK, 0)
