"""Ditto: the server's side.

Li et al., "Ditto: fair and robust federated learning through personalization", arXiv 2012.04221,
algorithm 1.

The server is FedAvg's and never sees the personal models, which its clients train besides; see
`fedmoe.clients.algorithms.ditto`.

Deviation: the mean of the clients' models weighs them by their numbers of examples, as ours
does everywhere; the authors' code takes the plain mean of their changes.
"""

from fedmoe.strategies.base import StackedFedAvg


class Ditto(StackedFedAvg):
    """Average the clients' weights by their numbers of examples."""

    evaluation_rides = True
