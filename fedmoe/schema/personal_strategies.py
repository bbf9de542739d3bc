"""Strategies of which each client has a model, or a mixture, of its own."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fedmoe.schema.strategy_base import StrategyBase
from fedmoe.schema.types import STRICT, Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LocalConfig(StrategyBase):
    """Nobody talks: each client trains alone. The baseline that every comparison needs."""

    name: Literal["local"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedEmConfig(StrategyBase):
    """FedEM (arXiv 2108.10252): every client a mixture of its own of shared components.

    Attributes:
        num_components: M, each a model as configured.
    """

    name: Literal["fedem"]
    num_components: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class IfcaConfig(StrategyBase):
    """IFCA (arXiv 2006.04088): each client trains the best of K models.

    Attributes:
        num_clusters: K, each a model as configured.
        restarts: starts that are tried, one after the other; 1 for just one.
        restart_rounds: how many rounds each is tried, if there are several.
    """

    name: Literal["ifca"]
    num_clusters: Count
    restarts: Count
    restart_rounds: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedMoeConfig(StrategyBase):
    """A federated mixture of experts, averaged expert by expert.

    Attributes:
        num_experts: E of the mixture that is made of the model; `model=moe` brings its own.
        gate: `prior` (a gate that all share, under a private prior over the experts), `shared`
            or `local` (private).
        warm_up_rounds: rounds of a single model, out of which the experts are then made; 0
            starts with experts at random.
        body_half_life: rounds in which the pull on the experts' bodies to their mean halves,
            from all the way after the warm-up; `None` for experts that part at once.
        gate_from: first round in which the gate of `prior` is trained.
        gate_decay: precision of a Gaussian prior at 0 on the gate's weights, as a weight decay.
        strengths: how many samples spread evenly over the experts a client's prior is held by;
            of several, the federation chooses by its validation data.
        class_strength: the same for a private bias by shares of classes; `None` for no bias.
        experts_per_client: M experts that a client has room for, at most as many as there are;
            `None` for all. While there is a single model, everybody holds that.
        assignment: of these: `fit` (those that fitted a client's data best) or `random` (drawn
            once for each client, a control).
    """

    name: Literal["fedmoe"]
    num_experts: Count
    gate: Literal["prior", "shared", "local"]
    warm_up_rounds: Annotated[int, Field(ge=0)]
    body_half_life: Positive | None
    gate_from: Count
    gate_decay: NonNegative
    strengths: Annotated[tuple[Positive, ...], Field(min_length=1)]
    class_strength: Positive | None
    experts_per_client: Count | None
    assignment: Literal["fit", "random"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LocalGlobalConfig(StrategyBase):
    """A global and a local expert under a local gate (arXiv 2010.02056)."""

    name: Literal["local_global"]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DittoConfig(StrategyBase):
    """FedAvg, and a private model at each client that is held near to it (arXiv 2012.04221).

    Attributes:
        proximal_lambda: weight of lambda / 2 * ||v - w_global||^2; 0 is training alone.
        personal_epochs: passes of the private model over the client's training part per round.
    """

    name: Literal["ditto"]
    proximal_lambda: NonNegative
    personal_epochs: Count


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedRepConfig(StrategyBase):
    """A shared body, averaged, under a private head of each client's (arXiv 2102.07078).

    Attributes:
        head_epochs: passes of the head over a client's training part per round; the body's are
            `training.epochs`.
        head: names of the head's parameters, or of submodules for all that is below them;
            `None` for the model's last layer, see `fedmoe.models.heads`.
    """

    name: Literal["fedrep"]
    head_epochs: Count
    head: Annotated[tuple[str, ...], Field(min_length=1)] | None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FedProtoConfig(StrategyBase):
    """Class prototypes travel, and no weights (arXiv 2105.00243).

    Attributes:
        prototype_lambda: weight of the mean squared distance between a sample's representation
            and its class's prototype; 0 is training alone.
    """

    name: Literal["fedproto"]
    prototype_lambda: NonNegative
