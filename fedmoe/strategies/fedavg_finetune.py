"""FedAvg with fine-tuning: the server's side.

Cheng, Chadha and Duchi, "Fine-tuning is fine in federated learning", arXiv 2108.07313 (FTFA);
the baseline FedAvg that meta-learning is compared with there and in Per-FedAvg (arXiv
2002.07948). The server is FedAvg's; what differs is how clients use the global model, see
`fedmoe.clients.algorithms.fedavg_finetune`.
"""

from fedmoe.strategies.base import StackedFedAvg


class FedAvgFineTune(StackedFedAvg):
    """Average the clients' weights by their numbers of examples."""

    evaluation_rides = True
