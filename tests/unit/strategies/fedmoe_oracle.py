"""FedMoE as plain loops: clients, experts, single samples, all in double precision.

The clusters of clients come from `cluster_directions`, and the order of samples from
`PlainClients`; all else is written out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from assignment_oracle import PlainAssignment
from mixture_oracle import (
    Experts,
    PlainClients,
    Predict,
    answer,
    cloned,
    experts_of,
    leaves_of,
    mean,
    stacked,
    total,
)
from torch import Tensor

from fedmoe.models import Parameters
from fedmoe.schema import FedMoeConfig
from fedmoe.strategies.seeding import cluster_directions

STEPS, MEMORY = 5, 0.8
# The last layers of `mixture_runs.MODELS`, by name; all that comes before is a body.
HEADS = {"weight", "bias", "weights.2", "biases.2", "2.weight", "2.bias"}


class Trained(NamedTuple):
    """What a client sends back: by expert that it was sent, samples and fit; and all models."""

    client: int
    mass: dict[int, float]
    experts: Experts
    gate: Parameters
    fit: dict[int, float]


@dataclass
class PlainFedMoE:
    """A federation under `strategy=fedmoe strategy.gate=prior`.

    Attributes:
        strength: of the priors, by which the next round goes.
        mean_loss: running mean of validation losses, one for each strength.
        examples: what the clients last told, by client and expert.
        clusters: of the clients, once there are experts.
    """

    clients: PlainClients
    experts: Experts
    gate: Parameters = field(init=False)
    priors: dict[int, list[float]] = field(default_factory=dict)  # logarithms
    strength: float = field(init=False)
    mean_loss: list[float] | None = None
    examples: dict[int, list[float]] = field(default_factory=dict)
    clusters: list[int] | None = None

    def __init__(self, clients: PlainClients, start: Mapping[str, Tensor]) -> None:
        config = clients.experiment.config.strategy
        assert isinstance(config, FedMoeConfig)
        self.config, self.clients, self.experts = config, clients, experts_of(start)
        self.gate = {n: start[f"router.{n}"].double() for n in ("weight", "bias")}
        self.strength = config.strengths[len(config.strengths) // 2]
        self.split = config.warm_up_rounds == 0
        self.priors, self.examples = {}, {}
        self.own: list[int] | None = None  # the experts of the client at hand
        room, count = config.experts_per_client, len(self.experts)
        self.table = None if room is None else PlainAssignment(count, room)

    @property
    def is_classes(self) -> bool:
        return self.clients.experiment.data.task.kind == "classification"

    def held(self) -> list[int]:
        """The experts that are sent."""
        if not self.split:
            return [0]
        return list(range(len(self.experts))) if self.own is None else self.own

    def hand_out(self, clients: Sequence[int], explore: bool) -> list[list[int] | None]:
        """Each client's own experts, where there is no room for all."""
        if self.table is None or not self.split:
            return [None for _ in clients]
        return list(self.table.choose(clients, explore))

    def class_bias(self, client: int) -> Tensor | float:
        """log of (n_y + s / O) / (n + s), over even shares."""
        strength = self.config.class_strength
        if strength is None or not self.is_classes:
            return 0.0
        classes = self.clients.experiment.data.task.num_outputs
        samples = self.clients.samples(client)
        bias = []
        for label in range(classes):
            found = sum(1 for _, y in samples if int(y) == label)
            share = (found + strength / classes) / (len(samples) + strength)
            bias.append(np.log(share * classes))
        return torch.tensor(bias, dtype=torch.float64)

    def scores(self, x: Tensor, gate: Parameters, expert: int) -> Tensor:
        return gate["weight"][expert] @ x + gate["bias"][expert]

    def likelihood(self, expert: Parameters, x: Tensor, y: Tensor) -> float:
        """log p(y | x) of one expert, for regression up to a constant."""
        out = answer(expert, x)
        if self.is_classes:
            return float(out[y] - out.exp().sum().log())
        return -float(((out - y) ** 2).mean())

    def gates(self, prior: Sequence[float], x: Tensor, held: Sequence[int]) -> list[float]:
        """softmax(phi(x) + b)."""
        pairs = zip(held, prior, strict=True)
        raised = [np.exp(float(self.scores(x, self.gate, e)) + own) for e, own in pairs]
        return [one / sum(raised) for one in raised]

    def posterior(
        self, experts: Experts, prior: Sequence[float], x: Tensor, y: Tensor
    ) -> tuple[list[float], list[float]]:
        """The gate, and Bayes' rule."""
        held = self.held()
        gates = self.gates(prior, x, held)
        pairs = zip(gates, held, strict=True)
        joint = [g * np.exp(self.likelihood(experts[e], x, y)) for g, e in pairs]
        return gates, [one / sum(joint) for one in joint]

    def biased(self, client: int) -> Experts:
        """The experts as the client uses them."""
        bias = self.class_bias(client)
        return [with_bias(own, bias) for own in cloned(self.experts)]

    def fit(
        self, client: int, experts: Experts, start: list[float], strength: float
    ) -> list[float]:
        """Generalised EM on the training data."""
        held, samples = self.held(), self.clients.samples(client)
        prior = normal(start)
        for _ in range(STEPS):
            found = [strength / len(held)] * len(held)
            known = [strength * np.exp(own) / sum(map(np.exp, prior)) for own in prior]
            for x, y in samples:
                gates, q = self.posterior(experts, prior, x, y)
                for place in range(len(held)):
                    found[place] += q[place]
                    known[place] += gates[place]
            prior = [b + np.log(f / k) for b, f, k in zip(prior, found, known, strict=True)]
        return normal(prior)

    def start_of(self, client: int) -> list[float]:
        own = self.priors.get(client, [0.0] * len(self.experts))
        return [own[e] for e in self.held()]

    def mixture(self, experts: Experts, gate: Parameters, prior: Sequence[float]) -> Predict:
        """Logarithms of mixed probabilities, or mixed predictions."""
        held = self.held()

        def predict(x: Tensor) -> Tensor:
            raised = [(self.scores(x, gate, e) + b).exp() for e, b in zip(held, prior, strict=True)]
            shares = [one / total(raised) for one in raised]
            outs = [answer(experts[e], x) for e in held]
            if not self.is_classes:
                return total([g * out for g, out in zip(shares, outs, strict=True)])
            probs = [out.exp() / out.exp().sum() for out in outs]
            return total([g * p for g, p in zip(shares, probs, strict=True)]).log()

        return predict

    def held_out_loss(self, client: int, experts: Experts, prior: Sequence[float]) -> float:
        """Summed over the validation data."""
        held, result = self.held(), 0.0
        for x, y in self.clients.samples(client, "validation"):
            gates = self.gates(prior, x, held)
            pairs = zip(gates, held, strict=True)
            joint = [g * np.exp(self.likelihood(experts[e], x, y)) for g, e in pairs]
            result -= np.log(sum(joint))
        return result

    def round(self, round: int, clients: Sequence[int]) -> None:
        """Fit, train, merge, make the experts, choose the strength."""
        trained, losses, tells = list[Trained](), [], self.split
        handed_out = self.hand_out(clients, True)
        for client, self.own in zip(clients, handed_out, strict=True):
            experts, held = self.biased(client), self.held()
            prior = self.fit(client, experts, self.start_of(client), self.strength)
            whole = list(self.priors.get(client, [0.0] * len(self.experts)))
            share = 0.0  # of what was sent, which those that were not do not get
            if self.table is not None and self.split:
                share = np.log(sum(np.exp(whole[e]) for e in held))
            for e, own in zip(held, prior, strict=True):
                whole[e] = own + share
            self.priors[client] = whole
            mass = [0.0] * len(held)
            for x, y in self.clients.samples(client):
                _, q = self.posterior(experts, prior, x, y)
                mass = [m + one for m, one in zip(mass, q, strict=True)]
            self.examples[client] = mass
            if self.split and len(held) > 1 and len(self.config.strengths) > 1:
                losses.append([
                    self.held_out_loss(client, experts, self.fit(client, experts, prior, one))
                    for one in self.config.strengths
                ])  # fmt: skip
            gate = {name: value.clone() for name, value in self.gate.items()}
            self.train(client, round, [experts[e] for e in held], experts, gate, prior)
            bias = self.class_bias(client)
            plain = [with_bias(own, bias, -1) for own in experts]
            samples = self.clients.samples(client)
            fit = {
                e: sum(self.likelihood(self.biased(client)[e], x, y) for x, y in samples)
                / len(samples)
                for e in held
            }
            trained.append(Trained(client, dict(zip(held, mass, strict=True)), plain, gate, fit))
        self.own = None
        self.merge(round, trained)
        if tells and losses:
            self.choose(clients, losses)

    def train(
        self, client: int, round: int, moving: Experts, experts: Experts, gate: Parameters,
        prior: list[float],
    ) -> None:  # fmt: skip
        """SGD on the mixture's loss; the gate is pulled to 0 after each step."""
        task, config = self.clients.experiment.config.training, self.config
        learns, rows = round >= config.gate_from, self.held()
        parts = [{n: value[e].clone() for n, value in gate.items()} for e in rows]
        leaves = leaves_of(moving) + (leaves_of(parts) if learns else [])
        for leaf in leaves:
            leaf.requires_grad_()
        rule = torch.optim.SGD(
            leaves, task.learning_rate, task.momentum, weight_decay=task.weight_decay
        )
        samples, seen = self.clients.samples(client), list[float]()
        for batch in self.clients.batches(client, round):
            own = {n: dict(zip(rows, [p[n] for p in parts], strict=True)) for n in gate}
            predict = self.mixture(experts, own, prior)  # type: ignore[arg-type]
            each = []
            for row in batch:
                x, y = samples[row]
                out = predict(x)
                each.append(-out[y] if self.is_classes else ((out - y) ** 2).mean())
            seen += [one.item() for one in each]
            rule.zero_grad()
            (total(each) / len(batch)).backward()  # type: ignore[no-untyped-call]
            rule.step()
            if learns:
                with torch.no_grad():
                    for leaf in leaves_of(parts):
                        leaf /= 1 + task.learning_rate * config.gate_decay
        for leaf in leaves:
            leaf.requires_grad_(False)
        for e, part in zip(rows, parts, strict=True):
            for name, value in part.items():
                gate[name][e] = value
        self.clients.losses[round, client] = float(np.mean(seen[-len(samples) :]))

    def merge(self, round: int, trained: list[Trained]) -> None:
        """Expert by expert, by the samples that each explained; then perhaps the split."""
        if self.table is not None and self.split:
            for one in trained:
                self.table.note(one.client, round, one.fit)
        for e in self.held():
            users = [one for one in trained if self.counts(one, e)]
            if not sum(one.mass[e] for one in users):
                continue
            weighted = [(one.mass[e], one.experts[e]) for one in users]
            self.experts[e] = mean(weighted)  # type: ignore[arg-type]
            rows = [(one.mass[e], {n: v[e] for n, v in one.gate.items()}) for one in users]
            for name, value in mean(rows).items():  # type: ignore[arg-type]
                self.gate[name][e] = value
        if self.split:
            self.pull(round)
        if self.split or round < self.config.warm_up_rounds:
            return
        self.split = True
        average = torch.cat([value.flatten() for value in self.experts[0].values()])
        moved = [
            torch.cat([value.flatten() for value in one.experts[0].values()]) - average
            for one in trained
        ]
        found = cluster_directions(
            torch.stack(moved), len(self.experts), self.clients.experiment.config.seed
        )
        self.clusters = found.tolist()
        for e in range(len(self.experts)):
            members = [one for one, k in zip(trained, found, strict=True) if k == e] or trained
            self.experts[e] = mean([(self.clients.count(o.client), o.experts[0]) for o in members])
        if self.table is not None:
            for one, k in zip(trained, self.clusters, strict=True):
                worst = dict.fromkeys(range(len(self.experts)), -np.inf)
                self.table.note(one.client, round, {**worst, k: 0.0})

    def pull(self, round: int) -> None:
        """Each expert's body on its way to the mean of all, less from round to round."""
        half_life, since = self.config.body_half_life, round - self.config.warm_up_rounds
        if half_life is None or not self.config.warm_up_rounds:
            return
        share = 0.5 ** (since / half_life)
        for name in self.experts[0].keys() - HEADS:
            middle = sum(own[name] for own in self.experts) / len(self.experts)
            for own in self.experts:
                own[name] = (1 - share) * own[name] + share * middle

    def counts(self, one: Trained, expert: int) -> bool:
        """Whether what became of an expert at a client counts: not if it was there in vain."""
        if expert not in one.mass:
            return False
        if self.table is None or not self.split:
            return True
        return self.table.knows_all(one.client) and (
            expert in self.table.choose([one.client], False)[0]
        )

    def choose(self, clients: Sequence[int], losses: list[list[float]]) -> None:
        """The strength with the least running mean of validation loss."""
        count = sum(len(self.clients.samples(c, "validation")) for c in clients)
        now = [sum(own[s] for own in losses) / count for s in range(len(self.config.strengths))]
        if self.mean_loss is not None:
            pairs = zip(self.mean_loss, now, strict=True)
            now = [MEMORY * before + (1 - MEMORY) * one for before, one in pairs]
        self.mean_loss = now
        self.strength = self.config.strengths[int(np.argmin(now))]

    def shared(self) -> Parameters:
        """Experts and gate."""
        return {**stacked(self.experts), **{f"router.{n}": v for n, v in self.gate.items()}}

    def personal(self, client: int) -> Predict:
        """Under a prior that is fitted once more."""
        everybody = range(self.clients.number)
        self.own = self.hand_out(everybody, False)[client]
        experts = self.biased(client)
        prior = self.fit(client, experts, self.start_of(client), self.strength)
        predict, self.own = self.mixture(experts, self.gate, prior), None
        return predict

    def general(self) -> Predict | None:
        """In equal proportions, without a bias; none where clients may lack experts."""
        if self.table is not None:
            return None
        return self.mixture(self.experts, self.gate, [0.0] * len(self.held()))


def normal(logs: Sequence[float]) -> list[float]:
    whole = np.log(sum(np.exp(one) for one in logs))
    return [float(one - whole) for one in logs]


def with_bias(expert: Parameters, bias: Tensor | float, sign: int = 1) -> Parameters:
    """The outputs' bias of a linear model, of a perceptron, or of `Tanh`."""
    (*_, last) = expert
    return {**expert, last: expert[last] + sign * bias}
