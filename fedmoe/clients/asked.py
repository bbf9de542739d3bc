"""What a cohort was asked to do, and what it was sent for that.

Letters: C clients of the cohort, E experts, M experts that a client was sent.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.experts import check_index, checked_model
from fedmoe.clients.requests import EvaluateRequest, TrainRequest
from fedmoe.data.federation import Ints, Part
from fedmoe.models import MixtureOfExperts, Parameters
from fedmoe.training.pool import Samples


@dataclass
class Asked:
    """A request to clients of one cohort, read with what all clients know.

    Attributes:
        experiment: what all clients have in common.
        request: what is asked.
    """

    experiment: Experiment
    request: TrainRequest | EvaluateRequest

    @property
    def clients(self) -> Ints:
        """(C,) the clients' partitions."""
        return self.request.clients

    @cached_property
    def samples(self) -> Samples:
        """The clients' training data."""
        return self.experiment.samples("train", self.clients)

    @cached_property
    def received(self) -> Parameters:
        """The arrays that were sent: (C, ...) by name, or (1, ...) if all clients share them.

        Raises:
            ValueError: they are not the parameters that travel; private ones are refused, too.
        """
        params, (shared, private) = self.request.params, self.experiment.parts
        if params is None:
            # Only who keeps a whole model can go on without being sent one.
            if (shared and private) or self.request.experts is not None:
                raise ValueError("no model was sent")
            return {}
        held = None if self.experts is None else self.experts.shape[1]
        return checked_model(params, shared, held)

    @cached_property
    def experts(self) -> Tensor | None:
        """(C, M) which of a mixture's experts the clients were sent; `None` for all.

        Raises:
            ValueError: there are none such, or they do not ascend.
        """
        index = self.request.experts
        if index is None:
            return None
        check_index(index, self.experiment.model, self.experiment.parts[0])
        return index.to(self.experiment.device).expand(len(self.clients), -1)

    def extra(self, key: str) -> Parameters:
        """Further arrays that were sent, as `received`; nothing if there were none."""
        extras = self.request.extras if isinstance(self.request, TrainRequest) else {}
        return {n: value.to(self.experiment.device) for n, value in extras.get(key, {}).items()}

    def samples_of(self, part: Part) -> Samples:
        """A part of the clients' data."""
        return self.samples if part == "train" else self.experiment.samples(part, self.clients)

    def expert_index(self, params: Parameters) -> Tensor:
        """(C, M) which experts a mixture's parameters hold."""
        if self.experts is not None:
            return self.experts
        count = next(iter(params.values())).shape[1]
        index_E = torch.arange(count, device=self.experiment.device)
        return index_E.expand(len(self.clients), count)

    def model_of(self, params: Parameters) -> nn.Module:
        """The model for some parameters: a mixture may have all of its experts, or fewer."""
        model = self.experiment.model
        if isinstance(model, MixtureOfExperts):
            return model.like(next(iter(params.values())).shape[1])
        return model

    def each(self, params: Parameters) -> Parameters:
        """(C, ...) of parameters some of which are (1, ...), as all have the same."""
        count = len(self.clients)
        return {name: value.expand(count, *value.shape[1:]) for name, value in params.items()}
