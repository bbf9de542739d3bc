"""Linear regression clients whose true weights scatter round a common mean.

The textbook case for a learned prior: the mean of the weights and their deviation are what a
client with few samples would have to know.

Letters: N samples, D features, K clients, n samples per client.
"""

import numpy as np

from fedmoe.data.federation import Dataset, Task
from fedmoe.schema import SyntheticLinearConfig


def load(config: SyntheticLinearConfig, rng: np.random.Generator) -> Dataset:
    """Draw mu ~ N(0, I), theta_k ~ N(mu, deviation^2 I), and y = x theta_k + noise (no bias).

    The features of client k are N(shift_k, I) with shift_k ~ N(0, shift^2 I).

    Returns:
        A regression data set with float32 targets (N, 1), one natural client per theta_k, and
        `truth` {"mu": (D,), "theta_KD": (K, D)}.
    """
    clients, samples, features = config.num_clients, config.samples_per_client, config.num_features
    mu_D = rng.standard_normal(features)
    theta_KD = mu_D + config.deviation * rng.standard_normal((clients, features))
    shift_KD = config.shift * rng.standard_normal((clients, features))
    x_KnD = shift_KD[:, None] + rng.standard_normal((clients, samples, features))
    noise_Kn = config.noise * rng.standard_normal((clients, samples))
    y_Kn = np.einsum("knd,kd->kn", x_KnD, theta_KD) + noise_Kn
    return Dataset(
        name=config.name,
        origin="synthetic",
        task=Task(kind="regression", num_features=features, num_outputs=1),
        x_ND=x_KnD.reshape(-1, features).astype(np.float32),
        y_N=y_Kn.reshape(-1, 1).astype(np.float32),
        client_N=np.repeat(np.arange(clients), samples),
        client_names=tuple(f"client {client}" for client in range(clients)),
        truth={"mu": mu_D, "theta_KD": theta_KD},
    )
