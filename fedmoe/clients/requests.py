"""What clients are asked to do, free of any message format: one request for a whole cohort.

Flower's messages (`answering.py`) and its NumPy interface (`numpy_client.py`) are both turned
into these.

Letters: C clients of the cohort.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.insight import Guidance
from fedmoe.models import Parameters

MODEL = "model"  # keys of a client's private state
GUIDANCE = "guidance-"  # and the name of a part
OPTIMIZER = "optimizer"


class Settings(NamedTuple):
    """What a train message sets; clients whose settings are equal train as one cohort.

    Attributes:
        round: of the federation.
        proximal_mu: weight of FedProx's term.
        prior_strength: of the private prior over a mixture's experts, in samples.
        payloads: what to put into the insight; `None` if no insight is wanted.
    """

    round: int = 0
    proximal_mu: float = 0.0
    prior_strength: float = 1.0
    payloads: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Train on the clients' own data.

    Attributes:
        clients: (C,) the clients' partitions.
        settings: the same for all.
        params: models to start from, (C, ...) by name or (1, ...) for one that all share; of
            what is not there, the clients go on with their own.
        experts: (C, M) or (1, M) which experts `params` holds, ascending; all if `None`.
        guidance: what the MetaLearner tells, of parts only those that are new to a client; each
            has the same parts and numbers. Empty if it tells nobody anything.
        guidance_of: (C,) which of it each client is told.
        extras: further arrays that the clients' algorithm reads, by the key of their record;
            as `params`.
    """

    clients: Ints
    settings: Settings
    params: Parameters | None = None
    experts: Tensor | None = None
    guidance: Sequence[Guidance] = ()
    guidance_of: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    extras: Mapping[str, Parameters] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """Score models on the clients' validation and test data.

    Attributes:
        clients: (C,) the clients' partitions.
        settings: the same for all; the round and the strength of priors matter.
        params: as in `TrainRequest`; without any, the clients' own models are scored.
        experts: as in `TrainRequest`.
    """

    clients: Ints
    settings: Settings = field(default_factory=Settings)
    params: Parameters | None = None
    experts: Tensor | None = None
