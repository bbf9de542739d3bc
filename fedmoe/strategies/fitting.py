"""Which policies of the MetaLearner go with which task and model."""

from torch import nn

from fedmoe.data.federation import Task
from fedmoe.errors import ConfigError
from fedmoe.models import MixtureOfExperts
from fedmoe.models.routers import LossFreeRouter
from fedmoe.schema import ExperimentConfig


def check_policies(config: ExperimentConfig, task: Task, model: nn.Module) -> None:
    """Refuse policies that could do nothing.

    Args:
        config: the experiment.
        task: what is to be learnt.
        model: that clients train.

    Raises:
        ConfigError: names the policy, and what it goes with.
    """
    learner = config.meta_learner
    if learner.distillation is not None and task.kind != "classification":
        raise ConfigError(
            f"meta_learner.distillation learns soft labels of classes, but data={config.data.name} "
            f"is a {task.kind}; allowed: data for classification (meta_learner=prior is for linear "
            "regressions)"
        )
    rule = model.rule if isinstance(model, MixtureOfExperts) else None
    if learner.expert_bias is not None and not isinstance(rule, LossFreeRouter):
        raise ConfigError(
            "meta_learner.expert_bias moves the bias of a loss-free router, but "
            f"strategy={config.strategy.name} with model={config.model.name} has none; allowed: "
            "model=moe with model/router=loss_free"
        )
