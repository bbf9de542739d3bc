"""How a mixture's experts are used: told by the clients as a few numbers, and told back to them.

A client whose samples are of one kind need not spread them over all experts, as long as the
federation uses all of them. So each client tells the share of its samples that goes to each
expert, E numbers and E mean probabilities, and is told the federation's (arXiv 2501.11873 does
the same for the batches of one job); losses with `model.losses.scope=federation` and the bias of
a loss-free router go by that.

Letters: C clients, E experts, M experts that a client was sent, n most samples of a client.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedmoe.clients.experts import held_rows, with_rows
from fedmoe.messages.words import LOAD
from fedmoe.models import MixtureOfExperts, Parameters
from fedmoe.models.router_losses import TINY, FederationLoad
from fedmoe.models.routers import LossFreeRouter, balanced_bias
from fedmoe.training.chunks import sample_chunks
from fedmoe.training.cohort import Trained
from fedmoe.training.terms import take

if TYPE_CHECKING:
    from fedmoe.clients.experiment import Experiment
    from fedmoe.clients.job import Job

_BIAS = "router.balance_bias"


def exchanges_load(experiment: "Experiment") -> bool:
    """Whether anything goes by the federation's use of its experts."""
    losses = experiment.router_losses
    return isinstance(experiment.model, MixtureOfExperts) and (
        (bool(losses) and losses.scope == "federation") or _moves_bias(experiment)
    )


def _moves_bias(experiment: "Experiment") -> bool:
    """Whether clients move the bias of a loss-free router; else a policy of the server does."""
    model, policies = experiment.model, experiment.config.meta_learner
    is_loss_free = isinstance(model, MixtureOfExperts) and isinstance(model.rule, LossFreeRouter)
    return is_loss_free and policies.expert_bias is None


def with_told_bias(job: "Job", start: Parameters) -> Parameters:
    """The models with the bias that the policy `expert_bias` has told; as they are without.

    Args:
        job: the clients.
        start: their models, (C, ...) by name, or (1, ...) where all have the same.
    """
    told_CE = job.guidance.parts.get("expert_bias")
    if told_CE is None or _BIAS not in start:
        return start
    return {**start, _BIAS: told_CE if job.experts is None else held_rows(told_CE, job.experts)}


def federation_load(job: "Job") -> FederationLoad | None:
    """What the clients were told of the experts that they hold; `None` if nothing.

    Raises:
        ValueError: it does not fit the model.
    """
    told = job.extra(LOAD)
    if not told or not isinstance(job.experiment.model, MixtureOfExperts):
        return None
    shape = (job.experiment.model.num_experts,)
    if told.keys() != {"load", "importance"} or {v.shape[1:] for v in told.values()} != {shape}:
        found = {name: tuple(value.shape[1:]) for name, value in told.items()}
        raise ValueError(f"the load told is {found}, expected load and importance of {shape}")
    rows = [value.expand(len(job.clients), -1) for value in (told["load"], told["importance"])]
    if job.experts is not None:
        rows = [held_rows(value, job.experts) for value in rows]
    return FederationLoad(*rows)


@torch.no_grad()
def exchange_load(job: "Job", trained: Trained) -> Trained:
    """Tell how the trained models use their experts, and move the bias of a loss-free router."""
    own = _load_of(job, trained.params)
    model = job.experiment.model
    assert isinstance(model, MixtureOfExperts)
    told = _of_all(own, job.experts, model.num_experts)
    job.tell(LOAD, {"load": told.load_CE, "importance": told.importance_CE})
    if not isinstance(model.rule, LossFreeRouter) or not _moves_bias(job.experiment):
        return trained
    goes_by = federation_load(job) or own
    moved = balanced_bias(trained.params[_BIAS], goes_by.load_CE, model.rule.rate)
    return trained._replace(params={**trained.params, _BIAS: moved})


@torch.no_grad()
def whole_load(job: "Job", params: Parameters) -> FederationLoad:
    """Each client's own shares of all experts: none of those that its model does not have."""
    model = job.experiment.model
    assert isinstance(model, MixtureOfExperts)
    held = job.experiment.algorithm.held_experts(job, params)
    return _of_all(_load_of(job, params), held, model.num_experts)


def _of_all(own: FederationLoad, held_CM: Tensor | None, num_experts: int) -> FederationLoad:
    if held_CM is None:
        return own
    none_CE = own.load_CE.new_zeros(len(held_CM), num_experts)
    return FederationLoad(*(with_rows(none_CE, held_CM, value) for value in own))


def _load_of(job: "Job", params: Parameters) -> FederationLoad:
    """Each client's own shares, on its training data."""
    sums = routing_sums(job, params)
    return FederationLoad(*(v / v.sum(dim=1, keepdim=True).clamp_min(TINY) for v in sums))


@torch.no_grad()
def routing_sums(job: "Job", params: Parameters) -> FederationLoad:
    """What each client's router makes of all its training samples, some clients at a time.

    Args:
        job: the clients.
        params: of a mixture, (C, ...) by name, or (1, ...) where all have the same.

    Returns:
        Sums over the samples instead of shares and means: slots, and probabilities.
    """
    model, samples = job.model_of(params), job.samples
    assert isinstance(model, MixtureOfExperts)
    router = job.each({n: value for n, value in params.items() if n.startswith("router.")})
    most = job.experiment.config.training.cohort_size
    sums_2CE = samples.pool.x_ND.new_zeros(2, len(job.clients), model.num_experts)
    for chosen, longest in sample_chunks(router, samples.pool, samples.count_C, most):
        index = torch.from_numpy(chosen).to(samples.pool.device)
        rows_Cn, count_C = samples.rows_Cn[chosen, :longest], samples.count_C[chosen]
        x, _, real_Cn = samples.pool.padded(rows_Cn, count_C)
        routing = model.route(take(router, index), x)
        for sums_CE, value_CEn in zip(sums_2CE, (routing.chosen, routing.probs), strict=True):
            # Padding is somebody else's sample, and may hold anything: 0 times NaN is not 0.
            sums_CE[index] = value_CEn.where(real_Cn.unsqueeze(1), 0.0).sum(dim=2)
    return FederationLoad(*sums_2CE)
