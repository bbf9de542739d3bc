"""What the MetaLearner can make of insights: one policy a file."""

from typing import Any

from fedmoe.insight.policies.base import Policy
from fedmoe.insight.policies.prior import Prior
from fedmoe.insight.policies.prototypes import Prototypes

__all__ = ["POLICIES", "Policy"]

# By the key of `MetaLearnerConfig`, in the order in which they learn.
POLICIES: dict[str, Any] = {"prior": Prior, "prototypes": Prototypes}
