"""What the MetaLearner can make of insights: one kind of guidance a file."""

from collections.abc import Callable

from fedmoe.insight.guidance import Guidance
from fedmoe.insight.memory import Memory
from fedmoe.insight.policies import prior, prototypes
from fedmoe.schema import MetaLearnerConfig

Policy = Callable[[Memory, MetaLearnerConfig, Guidance], Guidance]

POLICIES: dict[str, Policy] = {"prior": prior.apply, "prototypes": prototypes.apply}
