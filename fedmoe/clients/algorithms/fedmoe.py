"""The clients of a federated mixture of experts.

A client's gate is softmax(phi(x) + log pi): phi is shared, pi is the client's own (FedEM, arXiv
2108.10252, is the case without phi). A round fits pi to the training data by generalised EM with
the experts as received, under a Dirichlet whose strength the server sets; then the experts, and
from round `gate_from` on phi, are trained on the mixture's negative log-likelihood with pi held.
The reply says how many samples each expert explained, by which the server weighs it, and the
validation loss under several strengths, among which the server chooses.

Unlike numbers of samples per class are met by a bias of the client's own, b_y = log of its
smoothed class shares, added to every expert's logits in training and prediction and taken off
before parameters are sent (logit adjustment, Menon et al., arXiv 2007.07314, section 4, with the
client's own shares).

Letters: C clients, E experts, M experts that were sent, n most samples of a client, O classes,
S strengths.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from fedmoe.clients.algorithms.base import LocalAlgorithm
from fedmoe.clients.algorithms.class_bias import class_bias, with_output_bias
from fedmoe.clients.algorithms.mixture import (
    PRIOR,
    Evidence,
    gather_evidence,
    mean_fit,
    routed_examples,
)
from fedmoe.clients.requests import OPTIMIZER
from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.messages.words import EXPERTS, STRENGTHS
from fedmoe.models import MixtureOfExperts, Parameters, PriorRouter, Router, build_mixture
from fedmoe.models import build_model as build_whole
from fedmoe.models.routers import RuleRouter
from fedmoe.schema import FedMoeConfig, ModelConfig, MoeConfig
from fedmoe.training.cohort import Trained
from fedmoe.training.posteriors import fit_prior, posterior
from fedmoe.training.terms import Prior

if TYPE_CHECKING:
    from fedmoe.clients.job import Job

_ITERATIONS = 5  # EM steps a round; they go on from the last round's prior
_GUIDED = 0.9  # of a prior's centre is the guided expert's; the rest is shared evenly
_GATE = frozenset({"router.weight", "router.bias"})
# Under which the optimiser's state is kept as long as the gate is not trained: a state has rows
# for what it moves, so that the momentum of experts begins anew when the gate joins them.
_OPTIMIZER_OF_EXPERTS = "optimizer-of-experts"


class FedMoE(LocalAlgorithm):
    """Experts are shared; the gate is shared, private, or shared under a private prior.

    Attributes:
        config: see `FedMoeConfig`.
    """

    def __init__(self, config: FedMoeConfig) -> None:
        self.config = config

    @override
    def build(self, config: ModelConfig, task: Task, seed: int) -> nn.Module:
        """The mixture as configured, or one of models as configured."""
        model = self._mixture(config, task, seed)
        self._check_room(model)
        if self.config.gate == "prior":
            if not isinstance(model.rule, PriorRouter):
                raise ConfigError(
                    "strategy.gate=prior: needs model/router=prior; or choose strategy.gate=shared"
                )
            for name, value in model.router.named_parameters():
                if f"router.{name}" in _GATE:  # all experts are equal until there are some
                    nn.init.zeros_(value)
        return model

    def _check_room(self, model: MixtureOfExperts) -> None:
        """Refuse a number of experts per client that goes with no such model."""
        room, most = self.config.experts_per_client, model.num_experts
        if room is None:
            return
        if room > most:
            raise ConfigError(
                f"strategy.experts_per_client={room}: must be 1..{most}, as there are {most} "
                "experts, or null for all"
            )
        if isinstance(model.rule, RuleRouter):
            raise ConfigError(
                f"strategy.experts_per_client={room}: model/router=rule sends samples to experts "
                "that a client may not have; choose another router"
            )

    def _mixture(self, config: ModelConfig, task: Task, seed: int) -> MixtureOfExperts:
        if isinstance(config, MoeConfig):
            whole = build_whole(config, task, seed)
            assert isinstance(whole, MixtureOfExperts)
            return whole
        count = self.config.num_experts
        prior = self.config.gate == "prior"
        return build_mixture(
            config, task, seed,
            router=PriorRouter(num_experts=count) if prior else Router(num_experts=count),
            combine="probabilities" if task.kind == "classification" else "outputs",
        )  # fmt: skip

    @override
    def private_names(self, model: nn.Module) -> frozenset[str]:
        if self.config.gate == "shared":
            return frozenset()
        if self.config.gate == "prior":
            return frozenset({PRIOR})
        names = (name for name, _ in model.named_parameters())
        return frozenset(name for name in names if name.startswith("router."))

    @override
    def train(self, job: "Job", start: Parameters) -> Trained:
        """Fit the prior, then train the experts and the gate."""
        bias_CO = self._class_bias(job)
        params, frozen = with_output_bias(job, start, bias_CO), frozenset[str]()
        learns_gate = True
        if self.config.gate == "prior":
            found = gather_evidence(job, params)
            params = {**params, PRIOR: self._fit(job, found, params)}
            q_CMn = posterior(found.log_likelihood_CEn, found.gate_logits_CEn, params[PRIOR])
            examples_CM = (q_CMn * found.real_Cn.unsqueeze(1)).sum(dim=2)
            self._tell_strengths(job, found, params)
            learns_gate = job.request.settings.round >= self.config.gate_from
            frozen = frozenset({PRIOR}) if learns_gate else _GATE | {PRIOR}
            self._tell_experts(job, params, examples_CM, found)
        else:
            self._tell_experts(job, params, routed_examples(job, params))
        trained = job.train(
            params, frozen=frozen, prior=self._gate_prior(job, params),
            optimizer=OPTIMIZER if learns_gate else _OPTIMIZER_OF_EXPERTS,
        )  # fmt: skip
        plain = with_output_bias(job, trained.params, None if bias_CO is None else -bias_CO)
        return trained._replace(params=plain)

    @override
    def shared_model(self, job: "Job") -> Parameters | None:
        """All experts under the gate, with equal shares; none where gates are private.

        Nor where a client may lack experts: then it has no model that all have.
        """
        if self.config.gate == "local" or self._may_lack_experts or not job.received:
            return None
        return job.start_afresh()

    @override
    def personal_model(self, job: "Job", start: Parameters) -> Parameters | None:
        bias_CO = self._class_bias(job)
        params = with_output_bias(job, start, bias_CO)
        if self.config.gate != "prior":
            is_shared = self.config.gate == "shared" and not self._may_lack_experts
            return None if is_shared and bias_CO is None and job.received else params
        return {**params, PRIOR: self._fit(job, gather_evidence(job, params), params)}

    def _gate_prior(self, job: "Job", params: Parameters) -> Prior | None:
        """What holds a shared gate near knowing nothing of the inputs."""
        if not self.config.gate_decay:
            return None
        count = len(job.clients)
        zero = {
            name: torch.zeros_like(value[:1]).expand(count, *value.shape[1:])
            for name, value in params.items()
            if name in _GATE
        }
        precision_C = torch.full((count,), self.config.gate_decay, device=job.experiment.device)
        return Prior(zero, precision_C) if zero else None

    def _class_bias(self, job: "Job") -> Tensor | None:
        strength = self.config.class_strength
        return None if strength is None else class_bias(job, strength)

    def _fit(self, job: "Job", found: Evidence, params: Parameters) -> Tensor:
        """(C, M) each client's log prior; experts that were not sent keep their shares of all."""
        start_CM = params[PRIOR].log_softmax(dim=-1).expand(len(job.clients), -1)
        prior_CM = fit_prior(
            found.log_likelihood_CEn, found.gate_logits_CEn, start_CM, found.real_Cn,
            iterations=_ITERATIONS, pseudo_count=job.request.settings.prior_strength,
            centre_CE=self._centre(job, params),
        )  # fmt: skip
        if job.experts is None:
            return prior_CM
        return prior_CM + params[PRIOR].logsumexp(dim=-1, keepdim=True)

    def _centre(self, job: "Job", params: Parameters) -> Tensor | None:
        """(C, M) where priors are held: at the expert that guidance names; `None` for even shares.

        So is that of a client which was told of none, or of one that it was not sent.
        """
        expert_C = job.guided("expert")
        if expert_C is None:
            return None
        own_CM = job.expert_index(params) + 1 == expert_C.unsqueeze(1)
        share_C1 = _GUIDED * own_CM.any(dim=1, keepdim=True)
        return share_C1 * own_CM + (1 - share_C1) / own_CM.shape[1]

    @property
    def _may_lack_experts(self) -> bool:
        return self.config.experts_per_client is not None

    def _tell_experts(
        self, job: "Job", params: Parameters, examples_CM: Tensor, found: Evidence | None = None
    ) -> None:
        """Which experts these are, their samples, and their fit if experts are chosen by that."""
        told = {"index": job.expert_index(params), "examples": examples_CM}
        if self._may_lack_experts:
            told["fit"] = mean_fit(found or gather_evidence(job, params))
        job.tell(EXPERTS, told)

    def _tell_strengths(self, job: "Job", found: Evidence, params: Parameters) -> None:
        """The loss on the validation data under priors fitted with each strength."""
        strengths, count = self.config.strengths, len(job.clients)
        if len(strengths) < 2 or params[PRIOR].shape[1] < 2:
            return
        held_out = gather_evidence(job, params, "validation")
        each = len(strengths)
        centre_CM = self._centre(job, params)
        strength_SC = torch.tensor(strengths).to(found.real_Cn).repeat_interleave(count)
        priors = fit_prior(
            found.log_likelihood_CEn.repeat(each, 1, 1), found.gate_logits_CEn.repeat(each, 1, 1),
            params[PRIOR].repeat(each, 1), found.real_Cn.repeat(each, 1),
            iterations=_ITERATIONS, pseudo_count=strength_SC.unsqueeze(1),
            centre_CE=None if centre_CM is None else centre_CM.repeat(each, 1),
        )  # fmt: skip
        gate = held_out.gate_logits_CEn + priors.view(each, count, -1, 1)
        joint = gate.log_softmax(dim=2) + held_out.log_likelihood_CEn
        # Rounded shares may sum to more than 1, and the server believes in no loss below 0.
        loss_SC = -(joint.logsumexp(dim=2).clamp_max(0) * held_out.real_Cn).sum(dim=2)
        examples_C1 = held_out.real_Cn.sum(dim=1, keepdim=True)
        job.tell(STRENGTHS, {"loss": loss_SC.T.contiguous(), "examples": examples_C1})
