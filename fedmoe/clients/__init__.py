"""Clients: local training and evaluation behind Flower's messages and its NumPy interface."""

from fedmoe.clients.answering import answer, answer_cohort
from fedmoe.clients.experiment import Experiment, load_experiment, load_site_experiment
from fedmoe.clients.numpy_client import Client, Clients

__all__ = [
    "Client",
    "Clients",
    "Experiment",
    "answer",
    "answer_cohort",
    "load_experiment",
    "load_site_experiment",
]
