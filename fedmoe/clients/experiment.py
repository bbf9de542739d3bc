"""What a client process knows before the first message: configuration, data and model."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.clients.algorithms import LocalAlgorithm, local_algorithm
from fedmoe.config import from_json
from fedmoe.data import Federation, Ints, LazyFederation, Part, load_federation
from fedmoe.data.drawing import Stream, generator
from fedmoe.data.sites import Site
from fedmoe.errors import DataError
from fedmoe.insight.payloads import Facts, Payloads
from fedmoe.models import MixtureOfExperts, Parameters, parameters_of, router_losses_of
from fedmoe.models.router_losses import RouterLosses
from fedmoe.schema import ExperimentConfig
from fedmoe.training.device import resolve_device
from fedmoe.training.pool import Pool, Samples
from fedmoe.training.watch import RouterPlan, plan_watch


@dataclass(frozen=True)
class Experiment:
    """One experiment, made once per process and shared by all its clients.

    Attributes:
        config: the resolved configuration.
        data: every client's data, or what makes them on demand.
        model: the architecture; its parameters are the initial ones.
        initial: initial parameters, the same for every client since they come from the seed.
        algorithm: what clients do with the model that they are sent.
        device: where clients train and where their samples lie.
    """

    config: ExperimentConfig
    data: Federation
    model: nn.Module
    initial: Parameters
    algorithm: LocalAlgorithm
    device: torch.device

    @classmethod
    def of(cls, config: ExperimentConfig, data: Federation) -> "Experiment":
        """Build the model for the data.

        Raises:
            ConfigError: a model that cannot be built, or a device that is not there.
        """
        device = resolve_device(config.training.device)
        algorithm = local_algorithm(config.strategy)
        model = algorithm.build(config.model, data.task, config.seed)
        return cls(config, data, model, parameters_of(model), algorithm, device)

    @cached_property
    def parts(self) -> tuple[Parameters, Parameters]:
        """The initial parameters that travel, and those that are private; (1, ...) by name."""
        whole = {name: value[None].to(self.device) for name, value in self.initial.items()}
        return self.algorithm.split(self.model, whole)

    @property
    def shared(self) -> Parameters:
        """The initial parameters that travel."""
        return {name: value[0].cpu() for name, value in self.parts[0].items()}

    @cached_property
    def pool(self) -> Pool:
        """All clients' samples.

        Raises:
            DataError: there is no such thing, since samples are made on demand; see `samples`.
        """
        if isinstance(self.data, LazyFederation):
            raise DataError(f"{self.data.name}: clients' samples are made on demand")
        return Pool.of(self.data.x_ND, self.data.y_N, self.device)

    def samples(self, part: Part, clients: Ints) -> Samples:
        """One part of some clients' data.

        Where data are made on demand, that takes memory for all parts of these clients; asking
        for another part of the same clients next costs nothing.

        Args:
            part: which one.
            clients: (C,) whose.

        Raises:
            DataError: a client's samples cannot be made; names the client.
        """
        if isinstance(self.data, LazyFederation):
            data = self.data.only(clients)
            padded = data.parts[part].padded(np.arange(len(clients)))
            return Samples(Pool.of(data.x_ND, data.y_N, self.device), *padded)
        return Samples(self.pool, *self.data.parts[part].padded(clients))

    def training_order(self, clients: Ints) -> Ints:
        """An order of some clients, (C,), in which they train without being copied about.

        Those with most samples come first; where only making samples would tell, as they are.
        """
        if isinstance(self.data, LazyFederation):
            return np.arange(len(clients))
        return np.argsort(-self.data.parts["train"].counts_K[clients], kind="stable")

    @cached_property
    def payloads(self) -> Payloads:
        """What insights may carry."""
        return Payloads(Facts.of(self.config, self.data.task, self.model))

    @cached_property
    def public_SD(self) -> Tensor:
        """The public inputs, the same for all: held out of the data set, or drawn.

        Raises:
            DataError: they were to be held out, but the data were loaded without doing so.
        """
        if self.config.insight.public == "held_out":
            if isinstance(self.data, LazyFederation) or self.data.public_SD is None:
                raise DataError(
                    f"insight.public=held_out: nothing was held out of {self.data.name}"
                )
            return torch.from_numpy(self.data.public_SD).to(self.device)
        shape = self.config.insight.public_samples, self.data.task.num_features
        drawn = generator(self.config.seed, Stream.PUBLIC).standard_normal(shape, np.float32)
        return torch.from_numpy(drawn).to(self.device)

    @property
    def num_experts(self) -> int | None:
        """Of the mixture that clients train; `None` where it is none."""
        return self.model.num_experts if isinstance(self.model, MixtureOfExperts) else None

    @cached_property
    def router_losses(self) -> RouterLosses:
        """What a mixture adds to its loss; nothing without a router."""
        return router_losses_of(self.config.model)

    @cached_property
    def router(self) -> RouterPlan | None:
        """How the model's router is watched; `None` without one."""
        compares = self.algorithm.compares_experts
        return plan_watch(self.model, self.data, self.config.seed, compares)


@lru_cache(maxsize=2)
def load_experiment(config_json: str) -> Experiment:
    """The experiment that a run's configuration describes, cached per process.

    Raises:
        ConfigError: the text is not a valid configuration.
        DataError: the data cannot be had or divided as asked.
    """
    return _loaded(config_json, None)


def load_site_experiment(config_json: str, site: Site) -> Experiment:
    """The same, where this process has one client's own table; it is not cached.

    Raises:
        ConfigError: the text is not a valid configuration.
        DataError: the table cannot be had, or is not what the federation's are to be.
    """
    return _loaded(config_json, site)


def _loaded(config_json: str, site: Site | None) -> Experiment:
    config = from_json(config_json)
    rules = config.insight
    held_out = rules.public_samples if rules.public == "held_out" else 0
    data = load_federation(config.data, config.partition, config.seed, held_out, site)
    return Experiment.of(config, data)
