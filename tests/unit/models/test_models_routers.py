# Every router against loops over the samples and experts of one client at a time.
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from routers_oracle import Batch, naive_route
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
    balanced_bias,
)
from fedmoe.models.routers.switch import room_for
from fedmoe.models.routing import Routing, StepContext

D, B = 3, 9
KEYS = torch.tensor([5, -(2**63), 2**63 - 1, 77])
COUNTS = [9, 6, 1, 0]  # a full batch, a padded one, a lone sample, and nobody
RULES: list[tuple[Any, tuple[float, ...]]] = [
    ("mean", (-0.3, 0.2)), ("variance", (0.3, 1.0)), ("norm", (1.0, 2.0)),
    ("random", ()), ("round_robin", ()),
]  # fmt: skip
CASES: dict[str, Router] = {
    "plain-4": Router(num_experts=4),
    "plain-1": Router(num_experts=1),
    **{f"softmax-{k}": SoftmaxRouter(num_experts=4, top_k=k) for k in (1, 2, 4)},
    **{f"noisy-{k}": NoisyRouter(num_experts=4, top_k=k) for k in (1, 2, 4)},
    **{
        f"switch-{f}": SwitchRouter(num_experts=4, capacity_factor=f)
        for f in (0.5, 1.0, 1.2, 4.0)
    },
    "switch-1-expert": SwitchRouter(num_experts=1, capacity_factor=0.5),
    **{
        f"expert-choice-{f}-{k}": ExpertChoiceRouter(num_experts=4, capacity_factor=f, top_k=k)
        for f, k in [(0.5, 1), (1.0, 2), (1.2, 2), (4.0, 4), (9.0, 1)]
    },
    **{f"loss-free-{k}": LossFreeRouter(num_experts=4, top_k=k) for k in (1, 2, 4)},
    **{
        f"rule-{rule}": RuleRouter(num_experts=3, rule=rule, thresholds=thresholds)
        for rule, thresholds in RULES
    },
    "client": ClientRouter(num_experts=4),
    "ensemble": EnsembleRouter(num_experts=4),
    "ensemble-votes": EnsembleRouter(num_experts=4, votes=(1.0, 0.5, 3.0, 2.0)),
    "prior": PriorRouter(num_experts=4),
    "prior-alone": PriorRouter(num_experts=4, gate=False),
}  # fmt: skip
every_router = pytest.mark.parametrize("router", CASES.values(), ids=CASES)
both_times = pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])


def setting(router: Router, case: str = "random", seed: int = 0) -> tuple[Parameters, Tensor]:
    """Stacked parameters and samples; `case` is `random`, `dead` (an expert) or `ties`."""
    generator = torch.Generator().manual_seed(seed)
    clients = len(COUNTS)
    params = {
        name: torch.randn(clients, *p.shape, generator=generator, dtype=torch.float64)
        for name, p in router.parameters(D).items()
    }
    x_CBD = torch.randn(clients, B, D, generator=generator, dtype=torch.float64)
    for name, value in params.items():
        if case == "dead" and name in {"bias", "prior", "assignment", "balance_bias"}:
            value[:, 0] = -50.0
        if case == "ties":
            value.zero_()
    return params, x_CBD


def step() -> StepContext:
    counts = torch.tensor(COUNTS)[:, None]
    weight = (torch.arange(B) < counts).double() / counts.clamp_min(1)
    return StepContext(weight, KEYS)


def naive(router: Router, params: Parameters, x_CBD: Tensor, training: bool) -> list[Any]:
    """The parts of each client's routing, (E, B) from the loops, or `None`."""
    context, clients = step(), []
    for client in range(len(COUNTS)):
        own = {name: value[client] for name, value in params.items()}
        batch = Batch(x_CBD[client])
        if training:
            weight_B = context.weight[client].tolist()
            batch = Batch(x_CBD[client], weight_B, int(KEYS[client]))
        decisions = naive_route(router, own, batch)
        clients.append([_column(column) for column in zip(*decisions, strict=True)])
    return clients


def _column(samples: Any) -> Tensor | None:
    if samples[0] is None:
        return None
    return torch.stack([torch.stack(sample) for sample in samples], dim=1)


def assert_routed_as_naive(
    router: Router, params: Parameters, x_CBD: Tensor, routing: Routing, training: bool
) -> None:
    for client, parts in enumerate(naive(router, params, x_CBD, training)):
        real = COUNTS[client] if training else B  # padding may go anywhere
        for name, part, expected in zip(Routing._fields, routing, parts, strict=True):
            assert (part is None) == (expected is None), name
            if part is not None and expected is not None:
                torch.testing.assert_close(
                    part[client, :, :real], expected[:, :real], rtol=1e-9, atol=1e-9
                )


@both_times
@pytest.mark.parametrize("case", ["random", "dead", "ties"])
@every_router
def test_a_router_is_its_loop(router: Router, case: str, training: bool) -> None:
    params, x_CBD = setting(router, case)
    routing = router.route(params, x_CBD, step() if training else None)
    assert_routed_as_naive(router, params, x_CBD, routing, training)


@both_times
@settings(max_examples=40)
@given(seed=st.integers(1, 10_000), name=st.sampled_from(sorted(CASES)))
def test_a_router_is_its_loop_for_any_draw(seed: int, name: str, training: bool) -> None:
    router = CASES[name]
    params, x_CBD = setting(router, seed=seed)
    routing = router.route(params, x_CBD, step() if training else None)
    assert_routed_as_naive(router, params, x_CBD, routing, training)


@both_times
@every_router
def test_the_derivative_of_a_router_is_that_of_its_loop(router: Router, training: bool) -> None:
    params, x_CBD = setting(router)
    leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
    generator = torch.Generator().manual_seed(1)
    grads = torch.randn(3, len(COUNTS), router.num_experts, B, generator=generator).double()
    grads *= step().weight.unsqueeze(1) if training else 1.0  # nothing comes from padding

    def total(weight: Tensor, probs: Tensor, logits: Tensor, client: int | slice) -> Tensor:
        parts = zip((weight, probs, logits), grads, strict=True)
        return sum(((part * grad[client]).sum() for part, grad in parts), start=torch.zeros(()))

    def by(scalar: Tensor) -> tuple[Tensor, ...]:
        if not scalar.requires_grad:
            return tuple(torch.zeros_like(leaf) for leaf in leaves.values())
        return torch.autograd.grad(
            scalar, list(leaves.values()), allow_unused=True, materialize_grads=True
        )

    clients = naive(router, leaves, x_CBD, training)
    expected = by(torch.stack([total(p[0], p[1], p[3], c) for c, p in enumerate(clients)]).sum())
    routing = router.route(leaves, x_CBD, step() if training else None)
    found = by(total(routing.weight, routing.probs, routing.logits, slice(None)))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@both_times
@every_router
def test_a_client_is_routed_the_same_in_any_company(router: Router, training: bool) -> None:
    params, x_CBD = setting(router)
    together = router.route(params, x_CBD, step() if training else None)
    for client, count in enumerate(COUNTS):
        own = {name: value[client : client + 1] for name, value in params.items()}
        # In a cohort of its own its batch is not padded either.
        real = count if training else B
        context = None
        if training:
            own_weight = step().weight[client : client + 1, :real]
            context = StepContext(own_weight, KEYS[client : client + 1])
        alone = router.route(own, x_CBD[client : client + 1, :real], context)
        for one, other in zip(alone, together, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(one[0], other[client, :, :real], rtol=0, atol=1e-12)


@every_router
def test_one_client_needs_no_client_axis(router: Router) -> None:
    params, x_CBD = setting(router)
    stacked = router.route(params, x_CBD)
    for client in range(len(COUNTS)):
        own = {name: value[client] for name, value in params.items()}
        alone = router.route(own, x_CBD[client])
        for one, other in zip(alone, stacked, strict=True):
            if one is not None and other is not None:
                torch.testing.assert_close(one, other[client], rtol=0, atol=1e-12)


# ----------------------------------------------------------- what is said of some of them


@pytest.mark.parametrize("case", ["random", "ties"])
@pytest.mark.parametrize("name", ["switch-1.0", "expert-choice-1.0-2", "expert-choice-9.0-1"])
def test_padding_takes_no_room_wherever_it_is(name: str, case: str) -> None:
    router = CASES[name]
    params, x_CBD = setting(router, case)
    real_CB = torch.rand(len(COUNTS), B, generator=torch.Generator().manual_seed(2)) < 0.6
    weight_CB = real_CB.double() / real_CB.sum(dim=1, keepdim=True)
    routing = router.route(params, x_CBD, step()._replace(weight=weight_CB))
    for client, real_B in enumerate(real_CB):
        own = {key: value[client] for key, value in params.items()}
        decisions = naive_route(router, own, Batch(x_CBD[client], weight_CB[client].tolist()))
        for b in real_B.nonzero().flatten().tolist():
            torch.testing.assert_close(
                routing.weight[client, :, b], torch.stack(decisions[b].weight)
            )
        if name.startswith("expert"):
            assert not routing.chosen[client][:, ~real_B].any()


def test_room_is_the_even_share_rounded_up_whatever_floats_say() -> None:
    for samples in range(60):
        weight = (torch.arange(60) < samples).float()
        for experts in (1, 3, 4, 7):
            for factor in ("0.3", "1.0", "1.1", "1.2", "2.3"):
                exact = math.ceil(Fraction(factor) * samples / experts)
                assert room_for(weight, experts, float(factor)).item() == exact


def test_a_full_expert_drops_whom_it_has_no_room_for() -> None:
    router = SwitchRouter(num_experts=4, capacity_factor=1.0)
    params, x_CBD = setting(router, "ties")  # everybody wants the first expert
    routing = router.route(params, x_CBD, step())
    assert routing.chosen[0, 0].tolist() == [1.0] * 3 + [0.0] * 6  # ceil(9 / 4)
    assert routing.chosen[1, 0, :6].tolist() == [1.0] * 2 + [0.0] * 4
    assert routing.weight[0].sum(dim=0).tolist() == [0.25] * 3 + [0.0] * 6
    assert router.route(params, x_CBD).chosen[:, 0].all()  # but not at evaluation


def test_experts_that_choose_all_take_as_many() -> None:
    router = ExpertChoiceRouter(num_experts=4, capacity_factor=2.0, top_k=1)
    params, x_CBD = setting(router)
    chosen = router.route(params, x_CBD, step()).chosen
    for client, count in enumerate(COUNTS):
        room = -(-2 * count // 4)
        assert chosen[client].sum(dim=1).tolist() == [room] * 4
        assert not chosen[client, :, count:].any()
    assert (router.route(params, x_CBD).chosen.sum(dim=1) == 1).all()


def test_a_bias_moves_the_choice_and_not_the_weights() -> None:
    router = LossFreeRouter(num_experts=4, top_k=2)
    params, x_CBD = setting(router)
    params["balance_bias"].zero_()
    plain = router.route(params, x_CBD)
    softmax = SoftmaxRouter(num_experts=4, top_k=2).route(params, x_CBD)
    torch.testing.assert_close(plain.weight, softmax.weight)
    params["balance_bias"][:, 3] = 2.0
    moved = router.route(params, x_CBD)
    assert moved.chosen[:, 3].all()
    assert torch.equal(moved.probs, plain.probs)
    kept = moved.probs * moved.chosen
    torch.testing.assert_close(moved.weight, kept / kept.sum(dim=1, keepdim=True))


def test_the_bias_falls_for_whoever_had_too_much() -> None:
    bias, load = torch.tensor([0.5, 0.0, -0.5, 1.0]), torch.tensor([0.7, 0.25, 0.0, 0.05])
    moved = balanced_bias(bias, load, 0.1)
    for e in range(4):
        share = load[e].item() - sum(load.tolist()) / 4
        sign = 0.0 if abs(share) < 1e-6 else -1.0 if share > 0 else 1.0
        assert moved[e].item() == pytest.approx(bias[e].item() + 0.1 * sign)
    even = balanced_bias(bias.expand(2, 4), torch.full((2, 4), 0.25), 0.1)
    assert torch.equal(even, bias.expand(2, 4))


def test_noise_is_drawn_afresh_at_each_step_and_not_at_evaluation() -> None:
    router = NoisyRouter(num_experts=4, top_k=2)
    params, x_CBD = setting(router)
    first, again = (router.route(params, x_CBD, step()).logits for _ in range(2))
    assert torch.equal(first, again)
    later = router.route(params, x_CBD, step()._replace(key_C=KEYS + 1)).logits
    assert not torch.isclose(first, later).any()
    assert torch.equal(router.route(params, x_CBD).logits, router.logits(params, x_CBD))
    # The client's noise, and not the gate's: without it both would be the same.
    quiet = {**params, "noise_weight": torch.full_like(params["noise_weight"], 0.0)}
    away = (router.route(quiet, x_CBD, step()).logits - first).abs()
    assert away.max() > 0.1


def test_equal_samples_are_sent_to_the_same_expert_by_chance_and_others_to_all() -> None:
    router = RuleRouter(num_experts=3, rule="random")
    x_BD = torch.randn(3000, D, generator=torch.Generator().manual_seed(0))
    chosen = router.route({}, torch.cat([x_BD, x_BD.flip(0)])).chosen
    assert torch.equal(chosen[:, :3000], chosen[:, 3000:].flip(1))
    assert ((chosen.mean(dim=1) - 1 / 3).abs() < 0.03).all()
    zeros = router.route({}, torch.tensor([[0.0] * D, [-0.0] * D])).chosen
    assert torch.equal(zeros[:, 0], zeros[:, 1])


def test_a_client_keeps_one_expert_until_its_scores_change() -> None:
    router = ClientRouter(num_experts=3)
    scores = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 2.0], [-3.0, -2.0, -1.0]])
    chosen = router.route({"assignment": scores}, torch.zeros(3, 4, D)).chosen
    assert chosen.argmax(dim=1).tolist() == [[0] * 4, [1] * 4, [2] * 4]


@every_router
def test_what_is_shared_of_a_gate_knows_nothing_of_the_client(router: Router) -> None:
    params, x_CBD = setting(router)
    shared = router.shared_logits(params, x_CBD)
    private = {name: value for name, value in params.items() if name in {"prior", "assignment"}}
    other = {**params, **{name: value + 1.0 for name, value in private.items()}}
    assert torch.equal(router.shared_logits(other, x_CBD), shared)
    if "weight" in params:
        expected = params["weight"] @ x_CBD.mT + params["bias"].unsqueeze(2)
        torch.testing.assert_close(shared, expected)
    else:
        assert not shared.any()
    assert shared.shape == (len(COUNTS), router.num_experts, B)


def test_extreme_logits_stay_finite() -> None:
    x_BD = torch.tensor([[1e4]])
    params = {"weight": torch.tensor([[1.0], [-1.0], [0.0]]), "bias": torch.zeros(3)}
    for router in [
        SoftmaxRouter(num_experts=3, top_k=2), SwitchRouter(num_experts=3, capacity_factor=1.0),
        ExpertChoiceRouter(num_experts=3, capacity_factor=2.0, top_k=2),
    ]:  # fmt: skip
        leaves = {name: value.clone().requires_grad_() for name, value in params.items()}
        weight = router.route(leaves, x_BD).weight
        assert weight.flatten().tolist() == [1.0, 0.0, 0.0]
        for grad in torch.autograd.grad(weight[0, 0], list(leaves.values())):
            assert grad.isfinite().all()


def test_a_router_that_changes_its_rule_alone_has_lost_its_derivative() -> None:
    class Sharper(SoftmaxRouter):
        def route(self, params: Any, x: Tensor, context: StepContext | None = None) -> Routing:
            return super().route({name: 2 * p for name, p in params.items()}, x, context)

    class Deeper(SoftmaxRouter):
        def shared_logits(self, params: Any, x: Tensor) -> Tensor:
            return super().shared_logits(params, x).tanh()

    assert SoftmaxRouter(num_experts=3, top_k=1).knows_derivative()
    assert not Sharper(num_experts=3, top_k=1).knows_derivative()
    assert not Deeper(num_experts=3, top_k=1).knows_derivative()
    assert not NoisyRouter(num_experts=3, top_k=1).knows_derivative()
    assert replace(ClientRouter(num_experts=3), num_experts=2).knows_derivative()
