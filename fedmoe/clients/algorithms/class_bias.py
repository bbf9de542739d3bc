"""A bias of the client's own for each class: the logarithm of its share of the client's samples.

Logit adjustment (Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314,
section 4): trained under the bias, a model learns what inputs say about classes, and not which
classes a client happens to have. The bias is the client's own business: it is worked out from
its training data whenever it is needed, and taken off before parameters are sent.

Letters: C clients, E experts, O classes, n most samples of a client.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from fedmoe.models import Parameters

if TYPE_CHECKING:
    from fedmoe.clients.job import Job


def class_bias(job: "Job", strength: float) -> Tensor | None:
    """log(O (n_y + strength / O) / (n + strength)), (C, O): 0 for equal shares.

    Args:
        job: the clients.
        strength: samples spread evenly over the classes that are added to the client's own;
            above 0.

    Returns:
        `None` for regression.
    """
    task = job.experiment.data.task
    if task.kind != "classification":
        return None
    _, y_Cn, real_Cn = job.samples.padded()
    member_CnO = functional.one_hot(y_Cn, task.num_outputs) * real_Cn.unsqueeze(-1)
    count_CO = member_CnO.sum(dim=1).float() + strength / task.num_outputs
    share_CO: Tensor = count_CO / count_CO.sum(dim=1, keepdim=True)
    return share_CO.log() + math.log(task.num_outputs)


def with_output_bias(job: "Job", params: Parameters, bias_CO: Tensor | None) -> Parameters:
    """The models with a bias added to every expert's outputs; as they were without one."""
    name = _output_bias(params, job.experiment.data.task.num_outputs)
    if bias_CO is None or name is None:
        return params
    return {**params, name: params[name] + bias_CO.unsqueeze(1)}


def _output_bias(params: Parameters, num_outputs: int) -> str | None:
    """The experts' last parameter, where that is a bias of the outputs, (C, E, O)."""
    *_, (name, value) = ((n, p) for n, p in params.items() if n.startswith("experts."))
    return name if value.shape[2:] == torch.Size([num_outputs]) else None
