"""What a request and its guidance add to a cohort's loss.

Letters: C clients of the cohort, D features, P = D + 1 coefficients, O outputs.
"""

import numpy as np
import torch
from torch import Tensor

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.requests import TrainRequest
from fedmoe.data.federation import Ints
from fedmoe.models import Parameters
from fedmoe.models.linear import Linear
from fedmoe.training.pool import Samples
from fedmoe.training.terms import Prior, Proximal, Rehearsal, Term
from fedmoe.training.trust import prototype_trust


def guided_terms(
    experiment: Experiment, request: TrainRequest, samples: Samples, start: Parameters
) -> list[Term]:
    """FedProx's term and rehearsal of prototypes, where they are asked for.

    Raises:
        ValueError: guidance does not fit the task.
    """
    terms: list[Term] = []
    if request.settings.proximal_mu:
        terms.append(Proximal(start, request.settings.proximal_mu))
    guidance = request.guidance
    if guidance and guidance[0].prototypes is not None:
        shape = (experiment.data.task.num_outputs, experiment.data.task.num_features)
        prototypes_COD = _stack(experiment, request, "prototypes", shape)
        weight_CO = _stack(experiment, request, "prototype_weight", shape[:1])
        trust_C = prototype_trust(*samples.padded(), prototypes_COD, weight_CO > 0)
        terms.append(Rehearsal(prototypes_COD, weight_CO * trust_C[:, None]))
    return terms


def guided_prior(experiment: Experiment, request: TrainRequest, count_C: Ints) -> Prior | None:
    """The prior of a linear regression; other models know no such coefficients.

    Raises:
        ValueError: guidance does not fit the task.
    """
    guidance, task = request.guidance, experiment.data.task
    if not guidance or guidance[0].prior_mean is None:
        return None
    if not isinstance(experiment.model, Linear) or task.kind != "regression":
        return None
    shape = (task.num_features + 1, task.num_outputs)
    mean_CPO = _stack(experiment, request, "prior_mean", shape)
    ratio_C = np.array([one.prior_ratio for one in guidance])[request.guidance_of]
    # The loss is the mean over n samples and O outputs, so a sum's weight is divided by both.
    precision_C = torch.from_numpy(2 * ratio_C / (count_C * task.num_outputs)).to(mean_CPO)
    return Prior({"weight": mean_CPO[:, :-1].mT, "bias": mean_CPO[:, -1]}, precision_C)


def _stack(
    experiment: Experiment, request: TrainRequest, part: str, shape: tuple[int, ...]
) -> Tensor:
    """One part of each client's guidance, C in front."""
    values = [np.asarray(getattr(one, part), dtype=np.float32) for one in request.guidance]
    for value in values:
        if value.shape != shape:
            raise ValueError(f"guidance {part} has shape {value.shape}, expected {shape}")
    return torch.from_numpy(np.stack(values)[request.guidance_of]).to(experiment.device)
