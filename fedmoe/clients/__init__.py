"""Clients: local training and evaluation behind Flower's messages and its NumPy interface."""

from fedmoe.clients.answering import answer
from fedmoe.clients.experiment import Experiment, load_experiment
from fedmoe.clients.numpy_client import FedMoEClient

__all__ = ["Experiment", "FedMoEClient", "answer", "load_experiment"]
