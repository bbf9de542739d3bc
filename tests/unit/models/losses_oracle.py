"""The losses of routers for one client at a time: loops over its real samples and the experts."""

import torch
from torch import Tensor

from fedmoe.models.router_losses import FederationLoad
from fedmoe.models.routing import Routing


def mean_of(values: Tensor, e: int, real: range) -> Tensor:
    """Expert e's mean over the real samples, of one client's (E, B)."""
    return sum((values[e, b] for b in real), start=torch.zeros(()).double()) / len(real)


def shares(values: Tensor, real: range) -> list[Tensor]:
    means = [mean_of(values, e, real) for e in range(len(values))]
    total = sum(means, start=torch.zeros(()).double())
    return [mean / total for mean in means]


def squared_variation(values: list[Tensor]) -> Tensor:
    """Variance over the square of the mean."""
    mean = sum(values, start=torch.zeros(()).double()) / len(values)
    variance = sum(((v - mean) ** 2 for v in values), start=torch.zeros(()).double()) / len(values)
    return variance / mean**2


def to_first_order(own: list[Tensor], theirs_E: Tensor) -> Tensor:
    """CV² of the federation's values plus its slope there times how far one's own are away."""
    theirs = [value.clone().requires_grad_() for value in theirs_E]
    there = squared_variation(theirs)
    slope = torch.autograd.grad(there, theirs)
    away = [a - b.detach() for a, b in zip(own, theirs, strict=True)]
    return sum((s * d for s, d in zip(slope, away, strict=True)), start=there.detach())


def naive_loss(name: str, routing: Routing, count: int, told: FederationLoad | None) -> Tensor:
    """One client's.

    Args:
        name: of the loss.
        routing: the client's, (E, B).
        count: how many samples, from the front, are real.
        told: the federation's shares, (E,), where they are evened out.
    """
    real = range(count)
    if not count:
        return torch.zeros(()).double()
    probs, logits = routing.probs, routing.logits
    demand = routing.chosen if routing.demand is None else routing.demand
    if name == "importance":
        own = shares(probs, real)
        return squared_variation(own) if told is None else (
            to_first_order(own, told.importance_CE)
        )  # fmt: skip
    if name == "load":
        own = shares(demand, real)
        return squared_variation(own) if told is None else (
            to_first_order(own, told.load_CE)
        )  # fmt: skip
    if name == "balance":
        load = shares(demand.detach(), real)
        if told is not None:
            load = list(told.load_CE)
        parts = [f * mean_of(probs, e, real) for e, f in enumerate(load)]
        return len(probs) * sum(parts, start=torch.zeros(()).double())
    sizes = [sum((z.exp() for z in logits[:, b]), start=torch.zeros(())).log() for b in real]
    return sum((size**2 for size in sizes), start=torch.zeros(()).double()) / len(real)
