# A client's sums against a loop over its samples.
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmoe.models.combining import COMBINE
from fedmoe.models.router_metrics import MOST, TOTALS, RouterKind
from fedmoe.models.router_sums import UNKNOWN, Routed, main_experts, random_order, router_sums
from fedmoe.models.routing import Routing, softmax_top_k

OUT = 3
Kind = Literal["classification", "regression"]


def make_kind(kind: Kind, experts: int) -> RouterKind:
    has_classes = kind == "classification"
    classes = OUT if has_classes else 1
    return RouterKind(
        num_experts=experts, num_classes=classes, has_classes=has_classes, has_answers=True
    )


def make_routed(
    clients: int, samples: int, experts: int, top_k: int, seed: int, kind: Kind, ties: bool = False
) -> Routed:
    """Random clients; some are empty, some samples are dropped, the last of three experts dead."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(clients, experts, samples, generator=g, dtype=torch.float64)
    if experts > 2:
        logits[:, -1] = -60.0
    if ties:
        logits = logits.round()
    routing = softmax_top_k(logits, top_k)
    kept = (torch.rand(clients, 1, samples, generator=g) < 0.8).double()
    routing = routing._replace(weight=routing.weight * kept, chosen=routing.chosen * kept)
    target: Tensor = torch.randint(OUT, (clients, samples), generator=g)
    if kind == "regression":
        target = torch.randn(clients, samples, OUT, generator=g, dtype=torch.float64)
    answers = torch.randn(clients, experts, OUT, samples, generator=g, dtype=torch.float64)
    count = torch.randint(0, samples + 1, (clients, 1), generator=g)
    real_CB = torch.arange(samples) < count
    earlier_CB = torch.randint(UNKNOWN, experts, (clients, samples), generator=g)
    return Routed(
        routing=routing,
        answers=answers,
        target_CB=target,
        real_CB=real_CB,
        error_CB=torch.rand(clients, samples, generator=g, dtype=torch.float64),
        main_CB=main_experts(routing, real_CB),
        earlier_CB=earlier_CB.to(torch.int16),
        order_AES=random_order(seed, np.arange(clients), samples, experts),
    )


def plain_error(kind: Kind, y: list[float], target: Any) -> float:
    if kind == "classification":
        return float(y.index(max(y)) != int(target))
    return sum((a - float(t)) ** 2 for a, t in zip(y, target, strict=True)) / OUT


def plain_mix(combine: str, answers: list[list[float]], weights: list[float]) -> list[float]:
    """One answer of the experts', by the formula of the way they are combined."""
    if combine == "outputs":
        return [sum(w * a[o] for w, a in zip(weights, answers, strict=True)) for o in range(OUT)]
    if not any(weights):
        return [0.0] * OUT
    probs = [[math.exp(v) / sum(map(math.exp, a)) for v in a] for a in answers]
    return [
        math.log(sum(w * p[o] for w, p in zip(weights, probs, strict=True))) for o in range(OUT)
    ]


def plain_square(routed: Routed, c: int, b: int, kind: Kind) -> float:
    """E, and the cosine of each ordered pair of experts' answers to a sample."""
    assert routed.answers is not None
    answers = routed.answers[c, :, :, b].tolist()
    if kind == "classification":
        answers = [[value - sum(own) / OUT for value in own] for own in answers]
    found = 0.0
    for own in answers:
        for other in answers:
            dot = sum(x * y for x, y in zip(own, other, strict=True))
            found += dot / math.sqrt(sum(x * x for x in own) * sum(y * y for y in other))
    return found


def plain_main(routed: Routed, c: int, b: int) -> int:
    weights = routed.routing.weight[c, :, b].tolist()
    return weights.index(max(weights)) if any(weights) else UNKNOWN


def plain_sums(routed: Routed, c: int, kind: Kind, combine: str) -> dict[str, Any]:
    """One client's sums, one sample at a time."""
    routing, experts = routed.routing, routed.routing.weight.shape[1]
    load = [0.0] * experts
    class_load = [[0.0] * experts for _ in range(OUT if kind == "classification" else 1)]
    totals = dict.fromkeys(TOTALS, 0.0)
    for b in torch.nonzero(routed.real_CB[c]).flatten().tolist():
        row = int(routed.target_CB[c, b]) if kind == "classification" else 0
        for e in range(experts):
            load[e] += float(routing.chosen[c, e, b])
            class_load[row][e] += float(routing.weight[c, e, b])
            p = float(routing.probs[c, e, b])
            totals["gate_entropy"] -= p * math.log(p) if p else 0.0
        main, earlier = plain_main(routed, c, b), int(routed.earlier_CB[c, b])
        totals["answered"] += float(main != UNKNOWN)
        totals["compared"] += float(earlier != UNKNOWN)
        totals["changed"] += float(earlier not in (UNKNOWN, main))
        if routed.answers is None:
            continue
        totals["errors"] += float(routed.error_CB[c, b])
        weights = [float(routing.weight[c, e, b]) for e in routed.order_AES[c, :, b].tolist()]
        y = plain_mix(combine, routed.answers[c, :, :, b].tolist(), weights)
        totals["random_errors"] += plain_error(kind, y, routed.target_CB[c, b])
        totals["similarity"] += plain_square(routed, c, b, kind)
    return {"load": load, "class_load": class_load, "totals": [totals[name] for name in TOTALS]}


def named_sums(routed: Routed, kind: Kind, combine: str = "outputs") -> dict[str, Tensor]:
    router = make_kind(kind, routed.routing.weight.shape[1])
    flat_CJ = router_sums(routed, router, COMBINE[combine])
    assert flat_CJ.shape[1] == router.size
    load, totals, class_load = router.split(flat_CJ.numpy())
    found = {"load": load, "class_load": class_load, "totals": totals}
    return {name: torch.from_numpy(value) for name, value in found.items()}


def shared(routed: Routed) -> Routed:
    """The same samples, as one model for all clients has them."""

    def flat(part: Tensor) -> Tensor:
        return part.movedim(0, -2).flatten(-2).unsqueeze(0)

    answers = None if routed.answers is None else flat(routed.answers)
    parts = {n: flat(p) for n, p in routed.routing._asdict().items() if p is not None}
    routing = Routing(**parts)
    return routed._replace(routing=routing, answers=answers, order_AES=flat(routed.order_AES))


@settings(deadline=None, max_examples=80)
@given(
    kind=st.sampled_from(["classification", "regression"]),
    combine=st.sampled_from(["outputs", "probabilities"]),
    clients=st.integers(1, 4),
    samples=st.integers(1, 6),
    experts=st.integers(1, 5),
    seed=st.integers(0, 9999),
    ties=st.booleans(),
    data=st.data(),
)
def test_sums_are_a_loop_over_samples(
    kind: Kind,
    combine: str,
    clients: int,
    samples: int,
    experts: int,
    seed: int,
    ties: bool,
    data: st.DataObject,
) -> None:
    top_k = data.draw(st.integers(1, experts))
    routed = make_routed(clients, samples, experts, top_k, seed, kind, ties)
    if kind == "regression":
        combine = "outputs"
    if data.draw(st.booleans()):
        routed = routed._replace(answers=None)
    found = named_sums(routed, kind, combine)
    for c in range(clients):
        assert routed.main_CB[c].tolist() == [plain_main(routed, c, b) for b in range(samples)]
        for name, expected in plain_sums(routed, c, kind, combine).items():
            torch.testing.assert_close(
                found[name][c], torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=1e-9
            )


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("huge", [1e200, 1e300])
def test_what_an_unused_expert_blows_up_stays_finite(kind: Kind, huge: float) -> None:
    routed = make_routed(2, 4, 3, 1, seed=3, kind=kind)
    assert routed.answers is not None
    routed.answers[:, 2] *= huge
    totals_CT = named_sums(routed, kind)["totals"]
    assert totals_CT.isfinite().all()
    dealt = routed.routing.weight.gather(1, routed.order_AES)[:, 2]
    if kind == "regression":
        hit = ((dealt > 0) & routed.real_CB).sum(dim=1).double()
        assert hit.any()
        worst = totals_CT[:, TOTALS.index("random_errors")]
        torch.testing.assert_close(worst, hit * MOST, rtol=1e-6, atol=1e3)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_padding_may_hold_anything(kind: Kind) -> None:
    routed = make_routed(3, 5, 3, 2, seed=1, kind=kind)
    assert not routed.real_CB.all()
    expected = named_sums(routed, kind)
    padding_C1B = ~routed.real_CB.unsqueeze(1)
    assert routed.answers is not None
    spoilt = routed._replace(
        routing=Routing(*(p.masked_fill(padding_C1B, math.nan) for p in routed.routing[:4])),
        answers=routed.answers.masked_fill(padding_C1B.unsqueeze(1), math.nan),
        error_CB=routed.error_CB.masked_fill(~routed.real_CB, math.nan),
    )
    for one in (spoilt, shared(spoilt)):
        for name, value in named_sums(one, kind).items():
            torch.testing.assert_close(value, expected[name])


def test_the_order_of_experts_is_drawn_uniformly_for_each_sample() -> None:
    experts = 3
    order = random_order(7, np.arange(40), 50, experts).numpy()
    assert (np.sort(order, axis=1) == np.arange(experts)[:, None]).all()
    codes, counts = np.unique(order[:, 0] * experts + order[:, 1], return_counts=True)
    assert len(codes) == math.factorial(experts)
    # 2,000 draws over 6 orders: a deviation is about 17.
    assert (np.abs(counts - 2000 / 6) < 5 * 17).all()


def test_a_client_alone_has_the_draws_that_it_has_in_a_cohort() -> None:
    cohort = random_order(7, np.array([3, 8, 5]), 6, 4)
    alone = random_order(7, np.array([8]), 4, 4)
    assert torch.equal(cohort[1:2, :, :4], alone)
    assert not torch.equal(random_order(8, np.array([8]), 4, 4), alone)
    assert not torch.equal(random_order(7, np.array([9]), 4, 4), alone)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_random_routing_keeps_the_weights_and_the_number_of_slots(top_k: int) -> None:
    weight = softmax_top_k(torch.randn(2, 4, 9), top_k).weight
    dealt = weight.gather(1, random_order(0, np.arange(2), 9, 4))
    torch.testing.assert_close(dealt.sort(dim=1).values, weight.sort(dim=1).values)


def test_experts_that_are_one_function_are_similar() -> None:
    routed = make_routed(1, 4, 3, 2, seed=0, kind="classification")
    same = torch.randn(1, 1, OUT, 4, dtype=torch.float64)
    shifted = same * torch.tensor([1.0, 2.0, 5.0]).view(1, 3, 1, 1) + torch.randn(1, 3, 1, 4)
    routed = routed._replace(answers=shifted, real_CB=torch.ones(1, 4, dtype=torch.bool))
    for silent, square in ((None, 4 * 9.0), (1, 4 * 4.0)):
        if silent is not None:
            shifted[:, silent] = 0.5  # it says nothing
        totals = named_sums(routed, "classification")["totals"]
        assert totals[0, TOTALS.index("similarity")].item() == pytest.approx(square)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("clients", [1, 3])
def test_one_model_for_all_clients_lays_them_end_to_end(kind: Kind, clients: int) -> None:
    routed = make_routed(clients, 4, 3, 2, seed=5, kind=kind)
    expected = named_sums(routed, kind)
    found = named_sums(shared(routed), kind)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    order = random_order(5, np.arange(clients), 4, 3, shared=True)
    assert torch.equal(order, shared(routed).order_AES)
