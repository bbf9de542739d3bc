"""Small cohorts for tests of payloads, and what an honest client of one tells."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedmoe.config import load_config
from fedmoe.data.federation import Task
from fedmoe.insight.payloads import Facts, Payload, Payloads, Sources
from fedmoe.models.router_losses import FederationLoad

PARAMETERS, PUBLIC, RANK = 20, 6, 2
CLASSES, FEATURES, MOST, EXPERTS, SEED = 4, 3, 12, 5, 7
COUNTS = (12, 1, 0, 9)  # samples of the cohort's clients
TASK = Task(kind="classification", num_features=FEATURES, num_outputs=CLASSES)
LINE = Task(kind="regression", num_features=FEATURES, num_outputs=2)


def facts(task: Task = TASK, **rules: Any) -> Facts:
    """Of the default configuration with a linear model and some other rules of disclosure."""
    config = load_config(["model=linear"])
    return Facts(task, config.model, replace(config.insight, **rules), EXPERTS, SEED)


def payload(name: str, task: Task = TASK, **rules: Any) -> Payload:
    """One payload that there is."""
    return Payloads(facts(task, **rules)).by_name[name]


def cohort(task: Task = TASK, seed: int = 0) -> Sources:
    """Clients with `COUNTS` samples, beside which padding lies that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    clients = len(COUNTS)
    x_CnD = torch.randn(clients, MOST, FEATURES, generator=generator) + torch.arange(FEATURES)
    if task.kind == "classification":
        y_Cn = torch.randint(CLASSES, (clients, MOST), generator=generator)
    else:
        y_Cn = torch.randn(clients, MOST, task.num_outputs, generator=generator)
    real_Cn = torch.arange(MOST) < torch.tensor(COUNTS)[:, None]
    change = torch.randn(clients, PARAMETERS, generator=generator)
    load = torch.rand(2, clients, EXPERTS, generator=generator)
    load = load / load.sum(dim=2, keepdim=True)
    answers = 3 * torch.randn(clients, PUBLIC, task.num_outputs, generator=generator)
    basis = torch.randn(clients, FEATURES, RANK, generator=generator)
    return Sources(
        x_CnD.where(real_Cn.unsqueeze(-1), torch.nan), y_Cn, real_Cn,
        change=lambda: change, load=lambda: FederationLoad(*load), answers=lambda: answers,
        part=lambda _: basis,
    )  # fmt: skip


def one_of(sources: Sources, client: int) -> Sources:
    """A cohort of one, without padding."""
    n, one = int(sources.real_Cn[client].sum()), slice(client, client + 1)
    load = FederationLoad(*(value[one] for value in sources.load()))
    return Sources(
        sources.x_CnD[one, :n], sources.y_Cn[one, :n], sources.real_Cn[one, :n],
        change=lambda: sources.change()[one], load=lambda: load,
        answers=lambda: sources.answers()[one], part=lambda name: sources.part(name)[one],
    )  # fmt: skip


def samples_of(sources: Sources, client: int) -> list[tuple[NDArray[np.float64], Any]]:
    """A client's samples, in double precision."""
    n = int(sources.real_Cn[client].sum())
    xs, ys = sources.x_CnD[client, :n].double().numpy(), sources.y_Cn[client, :n].numpy()
    return list(zip(xs, ys, strict=True))


def told(one: Payload, sources: Sources) -> dict[str, NDArray[Any]]:
    """What the clients tell, as it arrives."""
    return {name: array.numpy() for name, array in one.make(sources).items()}
