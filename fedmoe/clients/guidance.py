"""The guidance that clients hold: what is new comes with a message, the rest was told before.

Letters: C clients of the cohort.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.requests import GUIDANCE, TrainRequest
from fedmoe.clients.states import States
from fedmoe.data.federation import Ints
from fedmoe.insight.guidance import PARTS, part_shapes
from fedmoe.models import Parameters


class Held(NamedTuple):
    """What a cohort is guided by.

    Attributes:
        parts: (C, ...) by name, those that any of the clients holds; a client that does not hold
            one has zeros, which change nothing.
        count_C: how many parts each client holds.
        numbers: (C,) by name, for this round.
        new: what the clients have to keep, by the key of their private state.
    """

    parts: dict[str, Tensor]
    count_C: Ints
    numbers: dict[str, Tensor]
    new: dict[str, Parameters]


NOT_GUIDED = Held({}, np.zeros(0, dtype=np.int64), {}, {})


def held_guidance(experiment: Experiment, request: TrainRequest, states: States) -> Held:
    """Put together what the clients are told and what they were told before.

    Raises:
        ValueError: guidance does not fit the task.
    """
    device = experiment.device
    for one in request.guidance:
        one.check(experiment.data.task, experiment.config.insight, experiment.num_experts)
    came = request.guidance[0].parts if request.guidance else {}
    held = Held({}, np.zeros(len(request.clients), dtype=np.int64), {}, {})
    for name in PARTS:
        if name in came:
            values = np.stack([np.asarray(one.parts[name]) for one in request.guidance])
            value = torch.from_numpy(values.astype(np.float32)[request.guidance_of]).to(device)
            known_C = torch.ones(len(request.clients), device=device)
            held.new[GUIDANCE + name] = {"value": value, "known": known_C}
        else:
            kept = kept_part(experiment, states, request.clients, name)
            if kept is None:
                continue
            value, known_C = kept["value"], kept["known"]
        held.parts[name] = value
        np.add(held.count_C, known_C.cpu().numpy().astype(np.int64), out=held.count_C)
    for name in request.guidance[0].numbers if request.guidance else {}:
        each = np.array([one.numbers[name] for one in request.guidance], dtype=np.float32)
        held.numbers[name] = torch.from_numpy(each[request.guidance_of]).to(device)
    return held


def kept_part(
    experiment: Experiment, states: States, clients: Ints, name: str
) -> Parameters | None:
    """A part that clients were told before: `value` (C, ...) and whether it is `known` (C,).

    `None` if none of them was told.
    """
    device = experiment.device
    task, config = experiment.data.task, experiment.config.insight
    shape = part_shapes(task, config, experiment.num_experts)[name]
    unknown = {
        "value": torch.zeros(1, *shape, device=device), "known": torch.zeros(1, device=device)
    }  # fmt: skip
    kept = states.read(GUIDANCE + name, clients, unknown)
    if kept is None:
        return None
    return {key: value.to(device) for key, value in kept.items()}
