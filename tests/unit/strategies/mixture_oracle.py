"""FedEM, IFCA and a global with a local expert as plain loops: clients, experts, single samples.

In double precision, with autograd and `torch.optim.SGD` on ordinary leaf tensors; the models'
forward passes are written out. Only the order of the samples comes from `make_schedule`.

Letters: D features, O outputs, E experts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fedmoe.clients import Experiment
from fedmoe.data import Part
from fedmoe.models import Parameters
from fedmoe.training.batches import make_schedule

PRIOR_SAMPLES = 1e-3  # of FedEM's E step; they keep a proportion from reaching 0


class Scored(NamedTuple):
    """One client's model on one part of its data."""

    loss: float
    accuracy: float


Predict = Callable[[Tensor], Tensor]  # (D,) to (O,) logits, or predictions
Loss = Callable[[Tensor, Tensor], Tensor]  # of one sample


def answer(expert: Parameters, x_D: Tensor) -> Tensor:
    """One expert on one sample; `expert` has the names of the built-in models, or of `Tanh`."""
    if "weight" in expert:
        return expert["weight"] @ x_D + expert["bias"]
    if "0.weight" in expert:
        hidden = torch.tanh(expert["0.weight"] @ x_D + expert["0.bias"])
        return expert["2.weight"] @ hidden + expert["2.bias"]
    for layer in range(len(expert) // 2):
        if layer:
            x_D = x_D.clamp_min(0)
        x_D = expert[f"weights.{layer}"] @ x_D + expert[f"biases.{layer}"]
    return x_D


def loss_of(y_O: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy where the target is a class, else squared error."""
    if target.dtype == torch.int64:
        return y_O.exp().sum().log() - y_O[target]
    return ((y_O - target) ** 2).sum() / len(y_O)


def error(predict: Predict) -> Loss:
    return lambda x, y: loss_of(predict(x), y)


def surprise(log_probs: Predict) -> Loss:
    """Minus the logarithm of the probability of what was seen."""
    return lambda x, y: -log_probs(x)[y]


def total(terms: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(terms)).sum(dim=0)


@dataclass
class PlainClients:
    """Clients one by one, and what each of them keeps.

    Attributes:
        experiment: configuration and data.
        kept: by client and key, the optimisers' states.
        losses: by round and client, the mean sample loss over the last epoch.
    """

    experiment: Experiment
    kept: dict[tuple[object, ...], Mapping[str, Any]] = field(default_factory=dict)
    losses: dict[tuple[int, int], float] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return self.experiment.data.num_clients

    def samples(self, client: int, part: Part = "train") -> list[tuple[Tensor, Tensor]]:
        x_nD, y_n = self.experiment.data.client(client, part)
        x, y = torch.from_numpy(np.array(x_nD)).double(), torch.from_numpy(np.array(y_n))
        return list(zip(x, y if y.dtype == torch.int64 else y.double(), strict=True))

    def count(self, client: int) -> int:
        return len(self.samples(client))

    def batches(self, client: int, round: int) -> list[list[int]]:
        """Places among the client's training samples, for each step."""
        config, count = self.experiment.config, self.count(client)
        schedule = make_schedule(
            rows_Cn=np.arange(count)[None],
            count_C=np.array([count]),
            client_C=np.array([client]),
            epochs_C=np.array([config.training.epochs]),
            batch_size=config.training.batch_size,
            seed=config.seed,
            round=round,
        )
        steps = zip(schedule.rows_SCB, schedule.samples_SC, strict=True)
        return [rows_CB[0, : size_C[0]].tolist() for rows_CB, size_C in steps]

    def train(
        self,
        client: int,
        round: int,
        leaves: list[Tensor],
        loss: Loss,
        key: tuple[object, ...] = (),
    ) -> None:
        """Move the leaves along the gradient of the mean of `loss` over each batch."""
        config = self.experiment.config.training
        for leaf in leaves:
            leaf.requires_grad_()
        rule = torch.optim.SGD(
            leaves, config.learning_rate, config.momentum, weight_decay=config.weight_decay
        )
        if (client, *key) in self.kept:
            rule.load_state_dict(self.kept[client, *key])  # type: ignore[arg-type]
        samples, batches = self.samples(client), self.batches(client, round)
        seen: list[float] = []
        for rows in batches:
            each = [loss(*samples[row]) for row in rows]
            seen += [one.item() for one in each]
            rule.zero_grad()
            (total(each) / len(rows)).backward()  # type: ignore[no-untyped-call]
            rule.step()
        for leaf in leaves:
            leaf.requires_grad_(False)
        if not config.reset_optimizer:
            self.kept[client, *key] = rule.state_dict()
        self.losses[round, client] = float(np.mean(seen[-len(samples) :]))

    def score(self, client: int, part: Part, predict: Predict) -> Scored:
        samples = self.samples(client, part)
        if not samples:
            return Scored(0.0, 0.0)
        answers = [(predict(x), y) for x, y in samples]
        loss = float(np.mean([loss_of(y_O, y).item() for y_O, y in answers]))
        right = [int(y_O.argmax()) == y for y_O, y in answers if y.dtype == torch.int64]
        return Scored(loss, float(np.mean(right)) if right else 0.0)


class Plain(Protocol):
    """A strategy as a loop."""

    def round(self, round: int, clients: Sequence[int]) -> None:
        """Let some clients train, and merge."""
        ...

    def shared(self) -> Parameters:
        """What travels."""
        ...

    def personal(self, client: int) -> Predict:
        """A client's own model."""
        ...

    def general(self) -> Predict | None:
        """The global model."""
        ...


Experts = list[Parameters]


def experts_of(stacked: Mapping[str, Tensor]) -> Experts:
    """Each expert's own parameters, in double precision."""
    own = {n.removeprefix("experts."): p for n, p in stacked.items() if n.startswith("experts.")}
    number = len(next(iter(own.values())))
    return [{name: p[e].double().clone() for name, p in own.items()} for e in range(number)]


def stacked(experts: Experts) -> Parameters:
    return {f"experts.{n}": torch.stack([one[n] for one in experts]) for n in experts[0]}


def cloned(experts: Experts) -> Experts:
    return [{name: p.clone() for name, p in one.items()} for one in experts]


def leaves_of(experts: Experts) -> list[Tensor]:
    return [p for one in experts for p in one.values()]


def mean(weighted: Sequence[tuple[int, Parameters]]) -> Parameters:
    """sum_c n_c w_c / sum_c n_c."""
    whole = sum(count for count, _ in weighted)
    first = weighted[0][1]
    return {n: total([count * one[n] for count, one in weighted]) / whole for n in first}


class PlainFedEm:
    """arXiv 2108.10252, algorithm 1, with posteriors as they are at each step."""

    def __init__(self, clients: PlainClients, start: Mapping[str, Tensor]) -> None:
        self.clients, self.components = clients, experts_of(start)
        even = [1 / len(self.components)] * len(self.components)
        self.proportions = dict.fromkeys(range(clients.number), even)

    def probability(self, x: Tensor, component: Parameters) -> Tensor:
        y_O = answer(component, x)
        return y_O.exp() / y_O.exp().sum()

    def expect(self, client: int) -> list[float]:
        """Equations 5 and 6: the mean posterior."""
        before, samples = self.proportions[client], self.clients.samples(client)
        summed = [PRIOR_SAMPLES / len(before) for _ in before]
        for x, y in samples:
            joint = [
                share * self.probability(x, own)[y].item()
                for share, own in zip(before, self.components, strict=True)
            ]
            for m, one in enumerate(joint):
                summed[m] += one / sum(joint)
        return [one / (len(samples) + PRIOR_SAMPLES) for one in summed]

    def mixture(self, experts: Experts, proportions: Sequence[float]) -> Predict:
        """Logarithms of the mixture's class probabilities."""

        def predict(x: Tensor) -> Tensor:
            each = zip(proportions, experts, strict=True)
            return total([share * self.probability(x, own) for share, own in each]).log()

        return predict

    def round(self, round: int, clients: Sequence[int]) -> None:
        """Train those who are asked, and average each component."""
        trained = []
        for client in clients:
            self.proportions[client] = self.expect(client)
            own = cloned(self.components)
            predict = self.mixture(own, self.proportions[client])
            self.clients.train(client, round, leaves_of(own), surprise(predict))
            trained.append((self.clients.count(client), own))
        self.components = [
            mean([(count, own[m]) for count, own in trained]) for m in range(len(self.components))
        ]

    def shared(self) -> Parameters:
        """The components."""
        return stacked(self.components)

    def personal(self, client: int) -> Predict:
        """In proportions that are fitted once more."""
        return self.mixture(self.components, self.expect(client))

    def general(self) -> Predict:
        """In equal proportions."""
        return self.mixture(self.components, [1 / len(self.components)] * len(self.components))


class PlainIfca:
    """arXiv 2006.04088, algorithm 1, averaged by examples.

    Attributes:
        chosen: by round and client, the cluster.
    """

    def __init__(self, clients: PlainClients, start: Mapping[str, Tensor]) -> None:
        self.clients, self.models = clients, experts_of(start)
        self.chosen: dict[tuple[int, int], int] = {}

    def best(self, client: int) -> int:
        """The first of those with the least total loss."""
        samples, found, least = self.clients.samples(client), 0, np.inf
        for k, own in enumerate(self.models):
            loss = sum(loss_of(answer(own, x), y).item() for x, y in samples)
            if loss < least:
                found, least = k, loss
        return found

    def round(self, round: int, clients: Sequence[int]) -> None:
        """Train the best models, and average cluster by cluster."""
        trained: dict[int, list[tuple[int, Parameters]]] = {}
        for client in clients:
            k = self.chosen[round, client] = self.best(client)
            (own,) = cloned([self.models[k]])
            self.clients.train(
                client, round, leaves_of([own]), error(partial(answer, own)), key=(k,)
            )
            trained.setdefault(k, []).append((self.clients.count(client), own))
        self.models = [mean(trained[k]) if k in trained else own
                       for k, own in enumerate(self.models)]  # fmt: skip

    def shared(self) -> Parameters:
        """All models."""
        return stacked(self.models)

    def personal(self, client: int) -> Predict:
        """The best of them."""
        return partial(answer, self.models[self.best(client)])

    def general(self) -> None:
        """None."""


class PlainLocalGlobal:
    """arXiv 2010.02056, section 3: h f_global + (1 - h) f_local, in which f_global is FedAvg's."""

    def __init__(self, clients: PlainClients, start: Mapping[str, Tensor]) -> None:
        self.clients = clients
        initial = clients.experiment.initial
        (self.shared_expert,) = experts_of(start)
        gate = {name: initial[f"router.{name}"].double() for name in ("weight", "bias")}
        own = (experts_of(initial)[1], gate)
        self.private = dict.fromkeys(range(clients.number), own)

    def mixture(self, shared: Parameters, local: Parameters, gate: Parameters) -> Predict:
        """Mixed probabilities, as logarithms, or mixed predictions."""

        def predict(x: Tensor) -> Tensor:
            scores = gate["weight"] @ x + gate["bias"]
            h = scores[0].exp() / (scores[0].exp() + scores[1].exp())
            first, second = answer(shared, x), answer(local, x)
            if self.clients.experiment.data.task.kind == "regression":
                return h * first + (1 - h) * second
            first, second = (y.exp() / y.exp().sum() for y in (first, second))
            return (h * first + (1 - h) * second).log()

        return predict

    def round(self, round: int, clients: Sequence[int]) -> None:
        """Train the global expert alone, and local expert and gate with it as received."""
        trained = []
        for client in clients:
            shared, local, gate = cloned([self.shared_expert, *self.private[client]])
            self.clients.train(client, round, leaves_of([shared]), error(partial(answer, shared)))
            predict = self.mixture(self.shared_expert, local, gate)
            self.clients.train(
                client, round, leaves_of([local, gate]), error(predict), key=("local",)
            )
            self.private[client] = (local, gate)
            trained.append((self.clients.count(client), shared))
        self.shared_expert = mean(trained)

    def shared(self) -> Parameters:
        """The global expert."""
        return stacked([self.shared_expert])

    def personal(self, client: int) -> Predict:
        """The mixture."""
        return self.mixture(self.shared_expert, *self.private[client])

    def general(self) -> Predict:
        """The global expert alone."""
        return partial(answer, self.shared_expert)


PLAIN: dict[str, Callable[[PlainClients, Mapping[str, Tensor]], Plain]] = {
    "fedem": PlainFedEm,
    "ifca": PlainIfca,
    "local_global": PlainLocalGlobal,
}
