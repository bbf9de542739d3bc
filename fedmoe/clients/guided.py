"""What a request and its guidance change of a cohort's training.

Letters: C clients of the cohort, D features, P = D + 1 coefficients, O outputs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.guidance import Held
from fedmoe.clients.requests import TrainRequest
from fedmoe.data.federation import Ints
from fedmoe.insight.payloads.products import unpacked_tensor
from fedmoe.models import Parameters
from fedmoe.models.linear import Linear
from fedmoe.training.class_gaussians import ClassGaussians, gaussian_rehearsal
from fedmoe.training.distillation import distillation, looked_at
from fedmoe.training.pool import Samples
from fedmoe.training.terms import Prior, Proximal, Rehearsal, Term
from fedmoe.training.trust import label_trust, prototype_trust


def guided_terms(
    experiment: Experiment, request: TrainRequest, held: Held, samples: Samples, start: Parameters
) -> list[Term]:
    """FedProx's term and rehearsal, where they are asked for."""
    terms: list[Term] = []
    if request.settings.proximal_mu:
        terms.append(Proximal(start, request.settings.proximal_mu))
    if "prototypes" in held.parts and "prototype_weight" in held.parts:
        prototypes_COD, weight_CO = held.parts["prototypes"], held.parts["prototype_weight"]
        trust_C = prototype_trust(*samples.padded(), prototypes_COD, weight_CO > 0)
        classes = weight_CO.shape[1]
        target_COO = torch.eye(classes, device=weight_CO.device).expand(len(weight_CO), -1, -1)
        terms.append(Rehearsal(prototypes_COD, target_COO, weight_CO * trust_C[:, None]))
    if "gaussian_means" in held.parts:
        terms.append(
            gaussian_rehearsal(
                _class_gaussians(held.parts), samples.padded(),
                experiment.config.insight.rehearsed, seed=experiment.config.seed,
                round=request.settings.round, client_C=request.clients,
            )
        )  # fmt: skip
    return [*terms, *distillation_terms(experiment, request, held, samples)]


def _class_gaussians(parts: Mapping[str, Tensor]) -> ClassGaussians:
    mean_COD = parts["gaussian_means"]
    residual_COD, clients = parts["gaussian_residual"], len(mean_COD)
    if residual_COD.dim() == 2:
        residual_COD = residual_COD.unsqueeze(1).expand_as(mean_COD)
    basis_CDr = mean_COD.new_zeros(clients, mean_COD.shape[2], 0)
    spread_COrr = mean_COD.new_zeros(*mean_COD.shape[:2], 0, 0)
    if "gaussian_spread" in parts:
        basis_CDr = parts["gaussian_basis"]
        spread_COrr = unpacked_tensor(parts["gaussian_spread"])
    return ClassGaussians(mean_COD, basis_CDr, spread_COrr, residual_COD, parts["gaussian_weight"])


def distillation_terms(
    experiment: Experiment, request: TrainRequest, held: Held, samples: Samples
) -> list[Term]:
    """Learning from soft labels, by who holds some and as far as its own samples bear them out."""
    if "soft_labels" not in held.parts or "soft_weight" not in held.parts:
        return []
    label_CSO, weight_C = held.parts["soft_labels"], held.parts["soft_weight"]
    policy, public_SD = experiment.config.meta_learner.distillation, experiment.public_SD
    most = len(public_SD) if policy is None else policy.samples
    index_CM = torch.from_numpy(
        looked_at(
            experiment.config.seed, request.settings.round, request.clients, len(public_SD), most
        )
    ).to(public_SD.device)
    trust_C = label_trust(*samples.padded(), public_SD, label_CSO)
    return [distillation(public_SD, index_CM, label_CSO, weight_C * trust_C)]


def guided_epochs(experiment: Experiment, held: Held, clients: int) -> Ints:
    """(C,) passes over the data that the clients are to make."""
    configured = experiment.config.training.epochs
    if "epochs" not in held.numbers:
        return np.full(clients, configured, dtype=np.int64)
    epochs_C: Ints = held.numbers["epochs"].cpu().numpy().astype(np.int64)
    return epochs_C


def guided_rates(experiment: Experiment, held: Held, terms: Sequence[Term], clients: int) -> Tensor:
    """(C,) learning rates of the clients, for a loss to which terms are added.

    A rehearsal of weight w makes the loss (own + w other) / (1 + w), a mean as
    without it (where there are several, w is their sum), so that a learning rate that suits the one
    suits the other. The division is made here, where it is the same for gradient descent; Adam's
    steps do not depend on the scale of a loss.
    """
    training = experiment.config.training
    rate_C = torch.full((clients,), training.learning_rate, device=experiment.device)
    if "learning_rate" in held.numbers:
        rate_C = rate_C * held.numbers["learning_rate"]
    if training.optimizer != "sgd":
        return rate_C
    whole_C = torch.ones_like(rate_C)
    for term in terms:
        if isinstance(term, Rehearsal):
            whole_C = whole_C + term.weight.sum(dim=1)
    return rate_C / whole_C


def guided_prior(experiment: Experiment, held: Held, count_C: Ints) -> Prior | None:
    """The prior of a linear regression; other models know no such coefficients."""
    task = experiment.data.task
    if "prior_mean" not in held.parts or "prior_ratio" not in held.parts:
        return None
    if not isinstance(experiment.model, Linear) or task.kind != "regression":
        return None
    mean_CPO, ratio_C = held.parts["prior_mean"], held.parts["prior_ratio"]
    # The loss is the mean over n samples and O outputs, so a sum's weight is divided by both.
    precision_C = 2 * ratio_C / (torch.from_numpy(count_C).to(ratio_C) * task.num_outputs)
    return Prior({"weight": mean_CPO[:, :-1].mT, "bias": mean_CPO[:, -1]}, precision_C)
