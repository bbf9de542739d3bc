"""One cohort at work on one request: what local algorithms are made of.

Letters: C clients of the cohort, E experts, M experts that a client was sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fedmoe.clients.cohorts import KeptState, cohort_of
from fedmoe.clients.experiment import Experiment
from fedmoe.clients.experts import check_index, difference, held_rows, with_rows
from fedmoe.clients.guidance import NOT_GUIDED, Held, held_guidance, kept_part
from fedmoe.clients.guided import guided_epochs
from fedmoe.clients.requests import MODEL, OPTIMIZER, EvaluateRequest, TrainRequest
from fedmoe.clients.states import States
from fedmoe.data.federation import Ints, Part
from fedmoe.messages.arrays import Records, Stack
from fedmoe.models import MixtureOfExperts, Parameters
from fedmoe.profiling import section
from fedmoe.training.cohort import Trained, train_cohort
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.pool import Samples
from fedmoe.training.terms import Prior, Term
from fedmoe.training.watch import RouterWatch

_NOTHING: Mapping[str, int] = {}


@dataclass
class Job:
    """Clients of one cohort, what they were asked, and what they keep for themselves.

    Attributes:
        experiment: what all clients have in common.
        request: what is asked.
        states: the clients' private arrays; changed by `finish` only, so that a cohort that
            fails half-way can be asked again.
        told: records that an algorithm adds to the replies.
    """

    experiment: Experiment
    request: TrainRequest | EvaluateRequest
    states: States
    told: Records = field(default_factory=dict)
    _kept: list[tuple[str, Parameters]] = field(default_factory=list)

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
        held = () if self.experts is None else (self.experts.shape[1],)
        expected = {name: (*held, *value.shape[1 + len(held) :]) for name, value in shared.items()}
        shapes = {name: tuple(value.shape[1:]) for name, value in params.items()}
        if shapes != expected:
            raise ValueError(f"the received model {difference(shapes, expected)}")
        # Flower's FedOpt family sends float64 for a float32 model.
        return {name: params[name].to(like.device, like.dtype) for name, like in shared.items()}

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

    @cached_property
    def guidance(self) -> Held:
        """What the clients are guided by; only training is.

        Raises:
            ValueError: guidance does not fit the task.
        """
        assert isinstance(self.request, TrainRequest)
        return held_guidance(self.experiment, self.request, self.states)

    @property
    def guidance_if_any(self) -> Held:
        """The same; for evaluation, nothing."""
        return self.guidance if isinstance(self.request, TrainRequest) else NOT_GUIDED

    @cached_property
    def epochs_C(self) -> Ints:
        """(C,) passes over the data, as guided or configured."""
        return guided_epochs(self.experiment, self.guidance_if_any, len(self.clients))

    def guided(self, name: str) -> Tensor | None:
        """(C, ...) a part of what the clients are guided by; `None` if no client holds it."""
        if isinstance(self.request, TrainRequest):
            return self.guidance.parts.get(name)
        kept = kept_part(self.experiment, self.states, self.clients, name)
        return None if kept is None else kept["value"]

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

    def start(self) -> Parameters:
        """The clients' models: what was received, and their own of all else."""
        shared, private = self.experiment.parts
        algorithm = self.experiment.algorithm
        if not self.received:
            return self.own(MODEL, algorithm.join(shared, private))
        own = self.own(MODEL, private)
        if self.experts is not None:
            own = {name: held_rows(value, self.experts) for name, value in own.items()}
        return algorithm.join(self.received, own)

    def start_afresh(self) -> Parameters:
        """What was received, with private parts as they are at first."""
        private = self.experiment.parts[1]
        if self.experts is not None:
            private = {name: held_rows(value, self.experts) for name, value in private.items()}
        return self.experiment.algorithm.join(self.received, private)

    def private(self, params: Parameters) -> Parameters:
        """What of the clients' models is theirs: the private parts, or all if none was sent."""
        if not self.received:
            return params
        kept = self.experiment.algorithm.split(self.experiment.model, params)[1]
        if self.experts is None:
            return kept
        whole = self.own(MODEL, self.experiment.parts[1])
        return {name: with_rows(whole[name], self.experts, kept[name]) for name in kept}

    def own(self, key: str, default: Parameters) -> Parameters:
        """Private arrays, (C, ...) by name, or the default (1 or C, ...) for who has none."""
        if not default:
            return {}
        found = self.states.read(key, self.clients, default)
        if found is None:
            return default
        return {name: found[name].to(self.experiment.device) for name in default}

    def extra(self, key: str) -> Parameters:
        """Further arrays that were sent, as `received`; nothing if there were none."""
        extras = self.request.extras if isinstance(self.request, TrainRequest) else {}
        return {n: value.to(self.experiment.device) for n, value in extras.get(key, {}).items()}

    def keep(self, key: str, arrays: Parameters) -> None:
        """Keep private arrays, (C, ...) by name, once all has gone well; see `finish`."""
        if arrays:
            self._kept.append((key, arrays))

    def tell(self, key: str, arrays: Parameters) -> None:
        """Add a record to the clients' replies, (C, ...) by name."""
        self.told[key] = Stack(arrays)

    def finish(self, trained: Parameters) -> None:
        """Let the clients keep what is theirs.

        One whose training has diverged stays as it was: its reply is refused, but it may do
        better in the next round, with its samples in another order or with other guidance.

        Args:
            trained: the models that came out, (C, ...) by name.
        """
        if not self._kept:
            return
        stacks = [(key, Stack(arrays)) for key, arrays in self._kept]
        finite_C = Stack(trained).finite_C
        for _, stack in stacks:
            finite_C = finite_C & stack.finite_C
        places = np.flatnonzero(finite_C)
        if not len(places):
            return
        whole = len(places) == len(self.clients)
        for key, stack in stacks:
            own = stack if whole else stack.take(places)
            self.states.write(key, self.clients[places], own.tensors)

    def train(
        self,
        params: Parameters,
        *,
        epochs: int | None = None,
        frozen: frozenset[str] = frozenset(),
        terms: Sequence[Term] = (),
        prior: Prior | None = None,
        optimizer: str | None = OPTIMIZER,
        experts: Tensor | None = None,
        still: Mapping[str, int] = _NOTHING,
    ) -> Trained:
        """Train models on the clients' training data as the configuration says.

        Args:
            params: to start from, (C, ...) by name or (1, ...) for one that all share.
            epochs: passes over the data; `epochs_C` if `None`.
            frozen: names of parameters that do not move.
            terms: added to the loss, besides what the request asks for.
            prior: on the parameters; the request's own comes first.
            optimizer: under which key the optimiser's state is kept, where it is kept; `None`
                for one that begins afresh and is not kept.
            experts: (C, M) which experts `params` holds; those that were sent if `None`.
            still: by name, how many rows of a parameter do not move, from the first.
        """
        held = self.experts if experts is None else experts
        experiment = self.experiment
        kept = None if experiment.config.training.reset_optimizer else optimizer
        state = KeptState(self, kept, params.keys() - frozen, held) if kept else None
        cohort = cohort_of(
            self, params, epochs=epochs, frozen=frozen, still=still, terms=terms, prior=prior,
            state=state,
        )  # fmt: skip
        with section("train"):
            trained = train_cohort(
                self.model_of(params), experiment.data.task, self.samples.pool,
                experiment.config.training, cohort, experiment.router_losses,
            )  # fmt: skip
        if state is not None:
            state.keep(trained.optimizer_state)
        return trained

    def score(
        self,
        params: Parameters,
        part: Part,
        watch: RouterWatch | None = None,
        *,
        calibration: bool = False,
    ) -> Evaluation:
        """Score models, as `train` takes them, on a part of the clients' data.

        Args:
            params: (C, ...) by name or (1, ...) for one that all share.
            part: of the data.
            watch: is shown what the router does.
            calibration: whether to compare confidence with accuracy.
        """
        samples = self.samples_of(part)
        with section("evaluate"):
            return evaluate_cohort(
                self.model_of(params), self.experiment.data.task, samples.pool, params,
                samples.rows_Cn, samples.count_C, self.experiment.config.training.cohort_size,
                watch, calibration,
            )  # fmt: skip
