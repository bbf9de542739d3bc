"""What the server's side of each of fedmoe's strategies takes from a configuration."""

import logging
from dataclasses import asdict
from typing import Any

import numpy as np

from fedmoe.clients.algorithms import initial_shared, local_algorithm
from fedmoe.data.drawing import hash_keys
from fedmoe.data.federation import Task
from fedmoe.models import Parameters, build_model
from fedmoe.models.heads import head_names, representation_width
from fedmoe.schema import (
    ExperimentConfig,
    FedAdagradConfig,
    FedAdamConfig,
    FedMoeConfig,
    FedProtoConfig,
    FedProxConfig,
    FedYogiConfig,
    IfcaConfig,
    MoeConfig,
    ReptileConfig,
)
from fedmoe.strategies.assignment import ExpertAssignment

_LOG = logging.getLogger("fedmoe.strategies")


def server_options(config: ExperimentConfig, task: Task) -> dict[str, Any]:
    """What a strategy's server-side class takes besides seed and sampling."""
    chosen = config.strategy
    if isinstance(chosen, FedProxConfig):
        return {"proximal_mu": chosen.proximal_mu}
    if isinstance(chosen, FedAdamConfig | FedYogiConfig | FedAdagradConfig | ReptileConfig):
        own = asdict(chosen)
        return {name: own[name] for name in own.keys() - {"name", "fraction_train"}}
    if isinstance(chosen, FedMoeConfig):
        strengths = chosen.strengths if chosen.gate == "prior" else chosen.strengths[:1]
        return {
            "warm_up_rounds": chosen.warm_up_rounds,
            "strengths": strengths,
            "assignment": _assignment(config, chosen),
            **_parting(config, chosen, task),
        }
    if isinstance(chosen, FedProtoConfig):
        model = build_model(config.model, task, config.seed)
        return {"task": task, "width": representation_width(model, task)}
    if isinstance(chosen, IfcaConfig):
        return {
            "starts": _starts(config, chosen, task),
            "restart_rounds": chosen.restart_rounds,
        }
    return {}


def _parting(config: ExperimentConfig, chosen: FedMoeConfig, task: Task) -> dict[str, Any]:
    """Which of the experts' parameters part slowly; experts that begin at random do not."""
    if chosen.body_half_life is None or not chosen.warm_up_rounds:
        return {}
    model = local_algorithm(chosen).build(config.model, task, config.seed)
    heads = head_names(model)
    experts = {name for name, _ in model.named_parameters() if name.startswith("experts.")}
    return {"body": frozenset(experts - heads), "body_half_life": chosen.body_half_life}


def _assignment(config: ExperimentConfig, chosen: FedMoeConfig) -> ExpertAssignment | None:
    """Who holds which experts, where clients have no room for all."""
    if chosen.experts_per_client is None:
        return None
    model = config.model
    count = model.num_experts if isinstance(model, MoeConfig) else chosen.num_experts
    return ExpertAssignment(count, chosen.experts_per_client, chosen.assignment, config.seed)


def _starts(config: ExperimentConfig, chosen: IfcaConfig, task: Task) -> list[Parameters]:
    """Further models to begin with, from seeds that no other experiment begins with."""
    trials = chosen.restarts * chosen.restart_rounds
    if chosen.restarts > 1 and trials > config.rounds:
        _LOG.warning(
            "strategy.restarts=%d of %d rounds each take %d rounds, but rounds=%d: the best start "
            "will not be chosen", chosen.restarts, chosen.restart_rounds, trials, config.rounds,
        )  # fmt: skip
    seeds = hash_keys(config.seed, np.arange(1, chosen.restarts)) >> np.uint64(1)
    return [initial_shared(config, task, seed) for seed in seeds.tolist()]
