"""Routers: which experts answer for a sample, and with what weight. One a file."""

from fedmoe.models.routers.base import Router
from fedmoe.models.routers.client import ClientRouter
from fedmoe.models.routers.ensemble import EnsembleRouter
from fedmoe.models.routers.expert_choice import ExpertChoiceRouter
from fedmoe.models.routers.fixed import FixedRouter
from fedmoe.models.routers.loss_free import LossFreeRouter, balanced_bias
from fedmoe.models.routers.noisy import NoisyRouter
from fedmoe.models.routers.prior import PriorRouter
from fedmoe.models.routers.rule import RuleRouter
from fedmoe.models.routers.softmax import SoftmaxRouter
from fedmoe.models.routers.switch import SwitchRouter

__all__ = [
    "ClientRouter",
    "EnsembleRouter",
    "ExpertChoiceRouter",
    "FixedRouter",
    "LossFreeRouter",
    "NoisyRouter",
    "PriorRouter",
    "Router",
    "RuleRouter",
    "SoftmaxRouter",
    "SwitchRouter",
    "balanced_bias",
]
