"""Insights, their memory, and the MetaLearner. Nothing here knows of Flower."""

from fedmoe.insight.columns import RoundInsights
from fedmoe.insight.guidance import Guidance
from fedmoe.insight.insight import Insight
from fedmoe.insight.memory import Memory
from fedmoe.insight.meta_learner import MetaLearner

__all__ = ["Guidance", "Insight", "Memory", "MetaLearner", "RoundInsights"]
