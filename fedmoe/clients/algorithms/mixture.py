"""What the clients of a mixture have in common: how well each expert explains their samples.

Letters: C clients of the cohort, E experts, n most samples of a client, O outputs.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedmoe.clients.load import routing_sums
from fedmoe.data.federation import Part, Task
from fedmoe.models import MixtureOfExperts, Parameters
from fedmoe.training.chunks import capacity, even_chunks
from fedmoe.training.terms import take_rows

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

PRIOR = "router.prior"


class Evidence(NamedTuple):
    """Each client's training samples, as the experts see them.

    Attributes:
        log_likelihood_CEn: log p_e(y | x): minus the sample loss; 0 for padding.
        gate_logits_CEn: of the gate, without anything private; 0 for padding.
        real_Cn: 1 for a sample, 0 for padding.
    """

    log_likelihood_CEn: Tensor
    gate_logits_CEn: Tensor
    real_Cn: Tensor


@torch.no_grad()
def gather_evidence(job: "Job", params: Parameters, part: Part = "train") -> Evidence:
    """Run every expert on a part of every client's data.

    Args:
        job: the clients.
        params: of a mixture, (C, ...) by name, or (1, ...) where all have the same.
        part: of the data.
    """
    experiment, samples = job.experiment, job.samples_of(part)
    model = job.model_of(params).eval()
    assert isinstance(model, MixtureOfExperts)
    longest = samples.rows_Cn.shape[1]
    if not longest:
        nothing_CE0 = samples.pool.x_ND.new_zeros(len(job.clients), model.num_experts, 0)
        return Evidence(nothing_CE0, nothing_CE0, nothing_CE0[:, 0])
    most = capacity(params, samples.pool, longest, experiment.config.training.cohort_size)
    parts = []
    for chunk in even_chunks(len(job.clients), most):
        index = torch.from_numpy(np.arange(len(job.clients))[chunk])
        x, y, real_Cn = samples.pool.padded(samples.rows_Cn[chunk], samples.count_C[chunk])
        own = {n: _rows(value, index, len(job.clients)) for n, value in params.items()}
        answers_CEOn, logits_CEn = model.answers(own, x)
        likelihood_CEn = log_likelihood(experiment.data.task, answers_CEOn, y)
        # Padding is somebody else's sample, and may hold anything: 0 times NaN is not 0.
        real_C1n = real_Cn.unsqueeze(1)
        likelihood_CEn = likelihood_CEn.where(real_C1n, 0)
        parts.append(Evidence(likelihood_CEn, logits_CEn.where(real_C1n, 0), real_Cn.to(x.dtype)))
    return Evidence(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def mean_fit(found: Evidence) -> Tensor:
    """The mean log-likelihood of each client's samples under each expert, (C, E), at most 0."""
    total_CE = torch.einsum("cen,cn->ce", found.log_likelihood_CEn, found.real_Cn)
    return (total_CE / found.real_Cn.sum(dim=1, keepdim=True)).clamp_max(0)


def routed_examples(job: "Job", params: Parameters) -> Tensor:
    """How many training samples each client's router sends to each expert, (C, E)."""
    return routing_sums(job, params).load_CE


def _rows(value: Tensor, index: Tensor, clients: int) -> Tensor:
    return take_rows(value.expand(clients, *value.shape[1:]), index.to(value.device))


def log_likelihood(task: Task, answers_CEOn: Tensor, y: Tensor) -> Tensor:
    """Minus each expert's sample loss: cross-entropy, or squared error as of unit Gaussians.

    Args:
        task: fixes the loss.
        answers_CEOn: outputs of each expert.
        y: (C, n) classes or (C, n, O) targets.

    Returns:
        (C, E, n).
    """
    if task.kind == "classification":
        log_probs = answers_CEOn.log_softmax(dim=2)
        shape = (-1, answers_CEOn.shape[1], 1, -1)
        return log_probs.gather(2, y[:, None, None].expand(*shape)).squeeze(2)
    return -(answers_CEOn - y.mT.unsqueeze(1)).square().mean(dim=2)
