"""What the MetaLearner can make of insights: one policy a file."""

from typing import Any

from fedmoe.insight.policies.base import Policy, Setting
from fedmoe.insight.policies.distillation import Distillation
from fedmoe.insight.policies.expert_assignment import ExpertAssignment
from fedmoe.insight.policies.expert_bias import ExpertBias
from fedmoe.insight.policies.gaussians import Gaussians
from fedmoe.insight.policies.hyperparameters import Hyperparameters
from fedmoe.insight.policies.prior import Prior
from fedmoe.insight.policies.prototypes import Prototypes
from fedmoe.insight.policies.selection import Selection
from fedmoe.insight.policies.step_size import StepSize

__all__ = ["POLICIES", "Policy", "Setting"]

# By the key of `MetaLearnerConfig`, in the order in which they learn.
POLICIES: dict[str, Any] = {
    "prior": Prior,
    "prototypes": Prototypes,
    "gaussians": Gaussians,
    "expert_assignment": ExpertAssignment,
    "step_size": StepSize,
    "hyperparameters": Hyperparameters,
    "selection": Selection,
    "distillation": Distillation,
    "expert_bias": ExpertBias,
}
