"""Federated mixtures of experts and insight exchange on Flower."""

__version__ = "0.1.0"
