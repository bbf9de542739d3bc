"""Routers: which experts answer for a sample, and with what weight. One a file."""

from fedmoe.models.routers.base import Router
from fedmoe.models.routers.client import ClientRouter
from fedmoe.models.routers.prior import PriorRouter
from fedmoe.models.routers.softmax import SoftmaxRouter

__all__ = ["ClientRouter", "PriorRouter", "Router", "SoftmaxRouter"]
