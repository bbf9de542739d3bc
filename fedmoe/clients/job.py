"""One cohort at work on one request: what local algorithms are made of.

Letters: C clients of the cohort, M experts that a client was sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fedmoe.clients.asked import Asked
from fedmoe.clients.cohorts import KeptState, cohort_of
from fedmoe.clients.experts import held_rows, with_rows
from fedmoe.clients.guidance import NOT_GUIDED, Held, held_guidance, kept_part
from fedmoe.clients.guided import guided_epochs
from fedmoe.clients.own import OwnArrays
from fedmoe.clients.requests import MODEL, OPTIMIZER, TrainRequest
from fedmoe.clients.states import States
from fedmoe.data.federation import Ints, Part
from fedmoe.messages.arrays import Records, Stack
from fedmoe.models import Parameters
from fedmoe.profiling import section
from fedmoe.training.cohort import Trained, train_cohort
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.terms import Prior, Term
from fedmoe.training.watch import RouterWatch

_NOTHING: Mapping[str, int] = {}


@dataclass
class Job(Asked):
    """Clients of one cohort, what they were asked, and what they keep for themselves.

    Attributes:
        states: the clients' private arrays.
        told: records that an algorithm adds to the replies.
    """

    states: States
    told: Records = field(default_factory=dict)

    @cached_property
    def own(self) -> OwnArrays:
        """What the clients keep for themselves."""
        return OwnArrays(self.states, self.clients, self.experiment.device)

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

    def start(self) -> Parameters:
        """The clients' models: what was received, and their own of all else."""
        shared, private = self.experiment.parts
        if not self.received:
            return self.own.read(MODEL, self.experiment.algorithm.join(shared, private))
        return self._with_received(self.own.read(MODEL, private))

    def start_afresh(self) -> Parameters:
        """What was received, with private parts as they are at first."""
        return self._with_received(self.experiment.parts[1])

    def _with_received(self, private: Parameters) -> Parameters:
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
        whole = self.own.read(MODEL, self.experiment.parts[1])
        return {name: with_rows(whole[name], self.experts, kept[name]) for name in kept}

    def tell(self, key: str, arrays: Parameters) -> None:
        """Add a record to the clients' replies, (C, ...) by name."""
        self.told[key] = Stack(arrays)

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
