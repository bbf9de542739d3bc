"""Clients with few of some classes each, made on demand: for federations of any size.

The classes have the same centres for all clients; what differs is which classes a client has
(label skew). Noise is uniform, not normal: it is drawn eight times faster, and a score that adds
up many features hardly knows the difference.

Letters: K clients, C of them in a cohort, n samples of each, D features, O classes.
"""

import numpy as np

from fedmoe.data.drawing import proportions, raised
from fedmoe.data.federation import Floats, Ints, Task
from fedmoe.data.lazy import Built, LazyDataset
from fedmoe.schema import SyntheticClassesConfig

_WIDTH = np.float32(np.sqrt(12.0))  # of a uniform distribution of deviation 1


def load(config: SyntheticClassesConfig, rng: np.random.Generator) -> LazyDataset:
    """Draw pi_k ~ Dirichlet(alpha), y ~ pi_k, x = centre_y + noise of mean 0 and deviation 1.

    Centres are random directions of length `separation` / sqrt(2), and so about `separation`
    apart. They and a key are drawn from `rng`; a client's samples from the key and the client.

    Returns:
        A classification data set of `num_clients` clients.
    """
    centre_OD = rng.standard_normal((config.num_classes, config.num_features))
    centre_OD /= np.linalg.norm(centre_OD, axis=1, keepdims=True)
    centre_OD *= config.separation / np.sqrt(2.0)
    key = int(rng.integers(2**63))

    def build_many(clients: Ints) -> Built:
        return _draw(config, centre_OD.astype(np.float32), key, clients)

    def build(client: int) -> tuple[Floats, Floats | Ints]:
        built = build_many(np.array([client]))
        return built.x_ND, built.y_N

    return LazyDataset(
        name=config.name,
        origin="synthetic",
        task=Task(
            kind="classification",
            num_features=config.num_features,
            num_outputs=config.num_classes,
            class_names=tuple(str(label) for label in range(config.num_classes)),
        ),
        num_clients=config.num_clients,
        build=build,
        build_many=build_many,
        num_samples=config.num_clients * config.samples_per_client,
    )


def _draw(config: SyntheticClassesConfig, centre_OD: Floats, key: int, clients: Ints) -> Built:
    """A generator per client draws; what the draws mean is worked out for all at once."""
    samples, classes = config.samples_per_client, config.num_classes
    rngs = [np.random.default_rng([key, client]) for client in clients.tolist()]
    gamma_CO = np.stack([rng.standard_gamma(raised(config.alpha), classes) for rng in rngs])
    uniform_Cm = np.stack([rng.random(classes + samples) for rng in rngs])
    pi_CO = proportions(gamma_CO, uniform_Cm[:, :classes], config.alpha)
    # The last edge is left out: it may be a rounding error below 1.
    edges_CO = np.cumsum(pi_CO, axis=1)[:, None, :-1]
    y_Cn: Ints = (uniform_Cm[:, classes:, None] >= edges_CO).sum(axis=2)
    lowest_OD = centre_OD - _WIDTH / 2
    x_CnD = np.empty((len(clients), samples, config.num_features), dtype=np.float32)
    for x_nD, y_n, rng in zip(x_CnD, y_Cn, rngs, strict=True):
        rng.random(out=x_nD, dtype=np.float32)
        x_nD *= _WIDTH
        x_nD += lowest_OD[y_n]
    counts = np.full(len(clients), samples, dtype=np.int64)
    return Built(x_CnD.reshape(-1, config.num_features), y_Cn.reshape(-1), counts)
