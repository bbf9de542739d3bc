"""A whole federation as plain loops, which the personalising strategies have to equal.

Client by client, with autograd and `torch.optim` on ordinary leaf tensors; only the order of the
samples comes from `make_schedule`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from fedmoe.clients import Experiment
from fedmoe.data import Part
from fedmoe.models import ModelOutput, Parameters
from fedmoe.training.batches import make_schedule

Penalty = Callable[[Parameters, Tensor, Tensor], Tensor]  # of parameters, features and classes
Scores = dict[str, tuple[float, float]]  # mean loss and accuracy over all test samples, by model


@dataclass
class PlainFederation:
    """Clients one by one, and what each of them keeps.

    Attributes:
        experiment: configuration, data, and the model whose initial parameters all begin with.
        private: by client and key, what a client keeps.
        optimizers: by client and key, likewise.
    """

    experiment: Experiment
    private: dict[tuple[int, str], Parameters] = field(default_factory=dict)
    optimizers: dict[tuple[int, str], Mapping[str, object]] = field(default_factory=dict)

    @property
    def initial(self) -> Parameters:
        return {name: p.clone() for name, p in self.experiment.initial.items()}

    def data(self, client: int, part: Part) -> tuple[Tensor, Tensor]:
        x_nD, y_n = self.experiment.data.client(client, part)
        return torch.from_numpy(np.array(x_nD)), torch.from_numpy(np.array(y_n))

    def count(self, client: int) -> int:
        return len(self.data(client, "train")[1])

    def forward(self, params: Parameters, x: Tensor) -> ModelOutput:
        output = functional_call(self.experiment.model, params, (x,))
        assert isinstance(output, ModelOutput)
        return output

    def batches(self, client: int, round: int, epochs: int) -> list[Tensor]:
        """Places among the client's training samples, for each step."""
        config, count = self.experiment.config, self.count(client)
        schedule = make_schedule(
            rows_Cn=np.arange(count)[None],
            count_C=np.array([count]),
            client_C=np.array([client]),
            epochs_C=np.array([epochs]),
            batch_size=config.training.batch_size,
            seed=config.seed,
            round=round,
        )
        steps = zip(schedule.rows_SCB, schedule.samples_SC, strict=True)
        return [torch.from_numpy(rows_CB[0, : size_C[0]]) for rows_CB, size_C in steps]

    def train(
        self,
        start: Parameters,
        client: int,
        round: int,
        epochs: int,
        *,
        moving: Collection[str] | None = None,
        penalty: Penalty | None = None,
        optimizer: str | None = "optimizer",
    ) -> Parameters:
        """One client's training; parameters that are not `moving` stay as they are."""
        config = self.experiment.config.training
        params = {name: p.clone() for name, p in start.items()}
        leaves = [p.requires_grad_() for n, p in params.items() if moving is None or n in moving]
        rule: torch.optim.Optimizer
        if config.optimizer == "adam":
            rule = torch.optim.Adam(leaves, config.learning_rate, weight_decay=config.weight_decay)
        else:
            rule = torch.optim.SGD(
                leaves, config.learning_rate, config.momentum, weight_decay=config.weight_decay
            )
        kept = None if config.reset_optimizer or optimizer is None else (client, optimizer)
        if kept in self.optimizers:
            rule.load_state_dict(self.optimizers[kept])  # type: ignore[arg-type]
        x_nD, y_n = self.data(client, "train")
        for rows in self.batches(client, round, epochs):
            output = self.forward(params, x_nD[rows])
            loss = functional.cross_entropy(output.y, y_n[rows])
            if penalty is not None:
                loss = loss + penalty(params, output.features, y_n[rows])
            rule.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            rule.step()
        if kept is not None:
            self.optimizers[kept] = rule.state_dict()
        return {name: p.detach() for name, p in params.items()}

    def mean(self, models: Mapping[int, Parameters]) -> Parameters:
        """Average by number of examples."""
        total = sum(self.count(client) for client in models)
        first = next(iter(models.values()))
        return {
            name: torch.stack([self.count(c) / total * m[name] for c, m in models.items()]).sum(0)
            for name in first
        }

    def score(self, model_of: Callable[[int], Parameters]) -> tuple[float, float]:
        """Mean loss and accuracy over the test samples of all clients, each by its own model."""
        loss, right, samples = 0.0, 0, 0
        for client in range(self.experiment.data.num_clients):
            x_nD, y_n = self.data(client, "test")
            y_nO = self.forward(model_of(client), x_nD).y
            loss += functional.cross_entropy(y_nO, y_n, reduction="sum").item()
            right += int((y_nO.argmax(dim=1) == y_n).sum())
            samples += len(y_n)
        return loss / samples, right / samples


def run_fedavg_finetune(
    world: PlainFederation, sampled: Sequence[Sequence[int]], epochs: int, finetune_epochs: int
) -> tuple[Parameters, Scores]:
    """FedAvg; after the last round each client trains the global model for itself."""
    shared = world.initial
    for round, clients in enumerate(sampled, start=1):
        shared = world.mean({c: world.train(shared, c, round, epochs) for c in clients})

    def tuned(client: int) -> Parameters:
        return world.train(shared, client, len(sampled), finetune_epochs, optimizer=None)

    return shared, {"global": world.score(lambda c: shared), "personalised": world.score(tuned)}


def run_ditto(
    world: PlainFederation,
    sampled: Sequence[Sequence[int]],
    epochs: int,
    personal_epochs: int,
    strength: float,
) -> tuple[Parameters, Scores]:
    """FedAvg, and a v of each client's own that is pulled to the w it received."""
    shared = world.initial
    personal: dict[int, Parameters] = {}
    for round, clients in enumerate(sampled, start=1):
        received = shared

        def near(params: Parameters, features: Tensor, y: Tensor) -> Tensor:
            away = [(p - received[name]).square().sum() for name, p in params.items()]  # noqa: B023
            return strength / 2 * torch.stack(away).sum()

        for c in clients:
            personal[c] = world.train(
                personal.get(c, received), c, round, personal_epochs, penalty=near,
                optimizer="personal",
            )  # fmt: skip
        shared = world.mean({c: world.train(received, c, round, epochs) for c in clients})
    world.private = {(c, "personal"): v for c, v in personal.items()}
    scores = {
        "global": world.score(lambda c: shared),
        "personalised": world.score(lambda c: personal.get(c, shared)),
    }
    return shared, scores


def run_fedrep(
    world: PlainFederation,
    sampled: Sequence[Sequence[int]],
    epochs: int,
    head_epochs: int,
    head: Collection[str],
) -> tuple[Parameters, Scores]:
    """A body for all; each client trains its head under it, and then the body under the head."""
    initial = world.initial
    body = {name: p for name, p in initial.items() if name not in head}
    heads: dict[int, Parameters] = {}

    def whole(client: int) -> Parameters:
        own = heads.get(client, {name: initial[name] for name in head})
        return {name: (body | own)[name] for name in initial}

    for round, clients in enumerate(sampled, start=1):
        bodies = {}
        for c in clients:
            first = world.train(whole(c), c, round, head_epochs, moving=head, optimizer="head")
            both = world.train(first, c, round, epochs, moving=body)
            heads[c] = {name: both[name] for name in head}
            bodies[c] = {name: both[name] for name in body}
        body = world.mean(bodies)
    world.private = {(c, "head"): own for c, own in heads.items()}
    return body, {"personalised": world.score(whole)}


def run_fedproto(
    world: PlainFederation, sampled: Sequence[Sequence[int]], epochs: int, strength: float
) -> tuple[dict[int, Tensor], Scores]:
    """Private models; class by class, the mean of all clients' representations is a target."""
    initial = world.initial
    models: dict[int, Parameters] = {}
    prototypes: dict[int, Tensor] = {}
    for round, clients in enumerate(sampled, start=1):
        told = dict(prototypes)

        def pulled(params: Parameters, features: Tensor, y: Tensor) -> Tensor:
            total = torch.zeros(())
            for feature, label in zip(features, y.tolist(), strict=True):
                if label in told:  # noqa: B023
                    total = total + (feature - told[label]).square().mean()  # noqa: B023
            return strength * total / len(y)

        for c in clients:
            start = models.get(c, initial)
            models[c] = world.train(start, c, round, epochs, penalty=pulled)
        for label in range(world.experiment.data.task.num_outputs):
            features = []
            for c in clients:
                x_nD, y_n = world.data(c, "train")
                own = world.forward(models[c], x_nD).features
                features += [row for row, y in zip(own, y_n.tolist(), strict=True) if y == label]
            if features:
                prototypes[label] = torch.stack(features).mean(dim=0)
    world.private = {(c, "model"): own for c, own in models.items()}
    return prototypes, {"personalised": world.score(lambda c: models.get(c, initial))}
