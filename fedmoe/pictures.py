"""The pictures that a run leaves behind."""

import logging
from pathlib import Path

import numpy as np

from fedmoe.clients import Experiment
from fedmoe.data import Federation, LazyFederation, class_counts
from fedmoe.errors import DataError
from fedmoe.routing_scores import CLIENTS_FILE, ROUTING_FILE
from fedmoe.tracking import RunDirectory, plot_learning, plot_partition, plot_routing
from fedmoe.tracking.sweep import read_summary

_LOG = logging.getLogger("fedmoe.pictures")
_MOST_MADE_TO_DRAW = 100


def draw_run(experiment: Experiment, directory: RunDirectory) -> None:
    """Who has which labels, how learning went, and what the router did."""
    data = experiment.data
    _draw_partition(data, directory.path / "partition.png")
    records = directory.read_lines("metrics.jsonl")
    if records:
        title = f"{experiment.config.name} on {data.name} ({data.num_clients} clients)"
        plot_learning(records, directory.path / "learning.png", title)
        _draw_routing(data, directory, title)


def _draw_routing(data: Federation, directory: RunDirectory, title: str) -> None:
    """Of a run without a router, nothing."""
    records, path = directory.read_lines(ROUTING_FILE), directory.path / CLIENTS_FILE
    if not records or not path.exists():
        return
    shown = read_summary(path)
    names = [data.client_name(client) for client in shown["clients"]]
    shares_CE = np.array(shown["shares"], dtype=np.float64)  # null is NaN
    drawing = directory.path / "routing.png"
    plot_routing(records, shares_CE, names, drawing, title, shown["round"])


def _draw_partition(data: Federation, path: Path) -> None:
    """Of clients that are made on demand, the first ones."""
    try:
        shown = (
            data.only(np.arange(min(data.num_clients, _MOST_MADE_TO_DRAW)))
            if isinstance(data, LazyFederation)
            else data
        )
    except DataError as error:
        _LOG.warning("no %s: %s", path.name, error)
        return
    names = [shown.client_name(client) for client in range(shown.num_clients)]
    plot_partition(class_counts(shown), data.task.class_names, names, path, data.num_clients)
