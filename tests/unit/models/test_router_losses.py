# What is added for the router's sake, against loops over a client's real samples.
import math
from typing import Any

import pytest
import torch
from losses_oracle import naive_loss
from torch import Tensor

from fedmoe.models.router_losses import FederationLoad, RouterLosses
from fedmoe.models.routers import (
    ClientRouter,
    ExpertChoiceRouter,
    LossFreeRouter,
    NoisyRouter,
    PriorRouter,
    Router,
    SoftmaxRouter,
    SwitchRouter,
)
from fedmoe.models.routing import Routing, StepContext

B, D = 7, 3
COUNTS = [7, 4, 1, 0]
NAMES = ("importance", "load", "balance", "z")
ROUTERS: dict[str, Router] = {
    **{f"softmax-{k}": SoftmaxRouter(num_experts=4, top_k=k) for k in (1, 2, 4)},
    "one-expert": SoftmaxRouter(num_experts=1, top_k=1),
    "switch": SwitchRouter(num_experts=4, capacity_factor=1.0),
    "expert-choice": ExpertChoiceRouter(num_experts=4, capacity_factor=1.0, top_k=1),
    "loss-free": LossFreeRouter(num_experts=4, top_k=2),
    "prior": PriorRouter(num_experts=4),
    "client": ClientRouter(num_experts=4),
    "noisy": NoisyRouter(num_experts=4, top_k=2),
}
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=ROUTERS)
every_scope = pytest.mark.parametrize("scope", ["local", "federation"])
every_loss = pytest.mark.parametrize("name", NAMES)


def step() -> StepContext:
    counts = torch.tensor(COUNTS)[:, None]
    weight = (torch.arange(B) < counts).double() / counts.clamp_min(1)
    return StepContext(weight, torch.arange(len(COUNTS)))


def leaves_of(router: Router, dead: bool = False) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(8)
    leaves = {
        name: torch.randn(len(COUNTS), *p.shape, generator=generator, dtype=torch.float64)
        for name, p in router.parameters(D).items()
    }
    if dead and "bias" in leaves:
        leaves["bias"][:, 0] = -50.0
    x_CBD = torch.randn(len(COUNTS), B, D, generator=generator, dtype=torch.float64)
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}, x_CBD


def told(experts: int) -> FederationLoad:
    generator = torch.Generator().manual_seed(9)
    both = torch.rand(2, len(COUNTS), experts, generator=generator, dtype=torch.float64)
    load, importance = both / both.sum(dim=2, keepdim=True)
    return FederationLoad(load, importance)


def losses(name: str, scope: Any, weight: float = 0.3) -> RouterLosses:
    return RouterLosses(**{name: weight}, scope=scope)


def of_client(routing: Routing, client: int) -> Routing:
    weight, probs, chosen, logits = (part[client] for part in routing[:4])
    demand = None if routing.demand is None else routing.demand[client]
    return Routing(weight, probs, chosen, logits, demand)


@every_scope
@every_loss
@every_router
def test_a_loss_is_its_loop_and_so_is_its_gradient(router: Router, name: str, scope: str) -> None:
    leaves, x_CBD = leaves_of(router)
    federation = told(router.num_experts)
    routing = router.route(leaves, x_CBD, step())
    found = losses(name, scope).value(routing, step().weight, federation)
    expected = []
    for client, count in enumerate(COUNTS):
        theirs = FederationLoad(*(part[client] for part in federation))
        known = theirs if scope == "federation" else None
        expected.append(0.3 * naive_loss(name, of_client(routing, client), count, known))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-9, atol=1e-9)
    if not found.requires_grad:
        return
    by = list(leaves.values())
    both = [
        torch.autograd.grad(value, by, retain_graph=True, allow_unused=True, materialize_grads=True)
        for value in (found.sum(), torch.stack(expected).sum())
    ]
    for one, other in zip(*both, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def detached(routing: Routing) -> Routing:
    weight, probs, chosen, logits = (part.detach() for part in routing[:4])
    demand = None if routing.demand is None else routing.demand.detach()
    return Routing(weight, probs, chosen, logits, demand)


@pytest.mark.parametrize("dead", [False, True])
@every_scope
@pytest.mark.parametrize("router", [r for r in ROUTERS.values() if not isinstance(r, NoisyRouter)])
def test_the_written_gradient_is_that_of_autograd(router: Router, scope: Any, dead: bool) -> None:
    leaves, x_CBD = leaves_of(router, dead)
    federation = told(router.num_experts)
    routing = router.route(leaves, x_CBD, step())
    every = RouterLosses(importance=0.4, load=0.2, balance=0.3, z=0.1, scope=scope)
    for chosen in [every, *(losses(name, scope) for name in NAMES)]:
        fixed = detached(routing)
        found = chosen.logits_gradient(fixed, step().weight, federation)
        if isinstance(router, ClientRouter):
            continue  # whose probabilities are not the softmax of anything that is trained
        logits = fixed.logits.clone().requires_grad_()
        again = fixed._replace(logits=logits, probs=logits.softmax(dim=1))
        total = chosen.value(again, step().weight, federation).sum()
        expected = torch.zeros_like(logits)
        if total.requires_grad:
            (expected,) = torch.autograd.grad(total, logits)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_loss
def test_without_word_of_the_federation_the_clients_own_load_serves(name: str) -> None:
    router = SoftmaxRouter(num_experts=4, top_k=2)
    leaves, x_CBD = leaves_of(router)
    routing = router.route(leaves, x_CBD, step())
    local = losses(name, "local").value(routing, step().weight, told(4))
    for other in (losses(name, "federation"), losses(name, "local")):
        assert torch.equal(other.value(routing, step().weight), local)
    gradients = [
        losses(name, scope).logits_gradient(routing, step().weight)
        for scope in ("local", "federation")
    ]
    assert torch.equal(*gradients)


@every_scope
@every_loss
def test_the_first_order_is_exact_where_the_client_is_like_the_federation(
    name: str, scope: str
) -> None:
    router = SoftmaxRouter(num_experts=4, top_k=2)
    leaves, x_CBD = leaves_of(router)
    routing = router.route(leaves, x_CBD, step())
    weight = step().weight
    load, importance = (
        torch.einsum("ceb,cb->ce", part, weight) for part in (routing.chosen / 2, routing.probs)
    )
    load[3], importance[3] = 0.25, 0.25  # this one has no samples
    same = FederationLoad(load.detach(), importance.detach())
    local = losses(name, "local").value(routing, weight)
    federation = losses(name, "federation").value(routing, weight, same)
    torch.testing.assert_close(federation, local)


@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
def test_even_load_costs_least(top_k: int) -> None:
    experts = 4
    turns = torch.arange(experts)
    even = ((turns - turns[:, None]) % experts < top_k).double()[None]
    one_set = (turns < top_k).double()[None, :, None].expand(1, experts, experts)
    weight = torch.full((1, experts), 1 / experts).double()
    ranges = {"importance": (0, experts / top_k - 1), "load": (0, experts / top_k - 1),
              "balance": (1, experts / top_k)}  # fmt: skip
    for name, (least, most) in ranges.items():
        for chosen, value in [(even, least), (one_set, most)]:
            routing = Routing(chosen / top_k, chosen / top_k, chosen, chosen)
            found = losses(name, "local", 1.0).value(routing, weight)
            assert found.item() == pytest.approx(value)


def test_z_is_zero_where_the_logits_are_normalised() -> None:
    logits = torch.full((1, 4, 3), math.log(1 / 4))
    routing = Routing(logits.exp(), logits.exp(), logits.exp(), logits)
    weight = torch.full((1, 3), 1 / 3)
    assert losses("z", "local", 1.0).value(routing, weight).abs().item() < 1e-12
    far = losses("z", "local", 1.0).value(routing._replace(logits=logits + 2), weight)
    assert far.item() == pytest.approx(4)


def test_nothing_asked_is_nothing_added() -> None:
    assert not RouterLosses()
    assert not RouterLosses(scope="federation")
    for name in NAMES:
        assert losses(name, "local")
