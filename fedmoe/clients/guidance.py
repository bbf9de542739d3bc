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


def held_guidance(experiment: Experiment, request: TrainRequest, states: States) -> Held:
    """Put together what the clients are told and what they were told before.

    Raises:
        ValueError: guidance does not fit the task.
    """
    task, device, config = experiment.data.task, experiment.device, experiment.config.insight
    shapes = part_shapes(task, config)
    for one in request.guidance:
        one.check(task, config)
    came = request.guidance[0].parts if request.guidance else {}
    held = Held({}, np.zeros(len(request.clients), dtype=np.int64), {}, {})
    for name in PARTS:
        if name in came:
            values = np.stack([np.asarray(one.parts[name]) for one in request.guidance])
            value = torch.from_numpy(values.astype(np.float32)[request.guidance_of]).to(device)
            known_C = torch.ones(len(request.clients), device=device)
            held.new[GUIDANCE + name] = {"value": value, "known": known_C}
        else:
            unknown = _unknown(shapes[name], device)
            kept = states.read(GUIDANCE + name, request.clients, unknown)
            if kept is None:
                continue
            value, known_C = kept["value"].to(device), kept["known"].to(device)
        held.parts[name] = value
        np.add(held.count_C, known_C.cpu().numpy().astype(np.int64), out=held.count_C)
    for name in request.guidance[0].numbers if request.guidance else {}:
        each = np.array([one.numbers[name] for one in request.guidance], dtype=np.float32)
        held.numbers[name] = torch.from_numpy(each[request.guidance_of]).to(device)
    return held


def _unknown(shape: tuple[int, ...], device: torch.device) -> Parameters:
    """What a client holds that was never told a part, (1, ...)."""
    zeros = {"value": torch.zeros(1, *shape, device=device)}
    return {**zeros, "known": torch.zeros(1, device=device)}
