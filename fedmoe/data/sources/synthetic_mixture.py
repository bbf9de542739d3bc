"""Clients that mix a few linear classifiers, each in proportions of its own.

After the synthetic data of FedEM (arXiv 2108.10252). Deviations: several classes instead of two,
the label being the largest of the noisy logits; normal features instead of bounded ones; and,
with `feature_shift`, features that tell which component a sample came from: each component's lie
about a centre of their own, and labels follow from where they lie about it. Without it p(x) is
the same for all clients, and only the identity of a client, not its inputs, says which
classifier to trust.

Letters: N samples, D features, C classes, K clients, M components.
"""

import numpy as np
from numpy.typing import NDArray

from fedmoe.data.drawing import dirichlet
from fedmoe.data.federation import Dataset, Ints, Task
from fedmoe.schema import SyntheticMixtureConfig


def load(config: SyntheticMixtureConfig, rng: np.random.Generator) -> Dataset:
    """Draw pi_k ~ Dirichlet(alpha), z ~ pi_k, u ~ N(0, I), x = feature_shift centre_z + u, and y.

    y is the argmax of u W_z + noise. Entries of W are N(0, 1 / D), so that logits have deviation
    1, which `noise` is to be compared with. Centres are random directions of length 1 / sqrt(2),
    and so about `feature_shift` apart once scaled.

    Returns:
        A classification data set, one natural client per pi_k, and `truth` {"pi_KM": (K, M),
        "component_N": (N,), "weight_MDC": (M, D, C), "centre_MD": (M, D), before scaling}.
    """
    clients, features, classes = config.num_clients, config.num_features, config.num_classes
    weight_MDC = rng.standard_normal((config.num_components, features, classes))
    weight_MDC /= np.sqrt(features)
    centre_MD = rng.standard_normal((config.num_components, features))
    centre_MD /= np.sqrt(2.0) * np.linalg.norm(centre_MD, axis=1, keepdims=True)
    pi_KM = dirichlet(rng, config.alpha, (clients, config.num_components))

    client_N = np.repeat(np.arange(clients), config.samples_per_client)
    component_N = _components(pi_KM, client_N, rng)
    about_ND = rng.standard_normal((len(client_N), features))
    x_ND = config.feature_shift * centre_MD[component_N] + about_ND
    logits_NC = config.noise * rng.standard_normal((len(client_N), classes))
    for component, weight_DC in enumerate(weight_MDC):
        own = component_N == component
        logits_NC[own] += about_ND[own] @ weight_DC
    return Dataset(
        name=config.name,
        origin="synthetic",
        task=Task(
            kind="classification",
            num_features=features,
            num_outputs=classes,
            class_names=tuple(str(label) for label in range(classes)),
        ),
        x_ND=x_ND.astype(np.float32),
        y_N=logits_NC.argmax(axis=1),
        client_N=client_N,
        client_names=tuple(f"client {client}" for client in range(clients)),
        truth={
            "pi_KM": pi_KM,
            "component_N": component_N.astype(np.float64),
            "weight_MDC": weight_MDC,
            "centre_MD": centre_MD,
        },
    )


def _components(pi_KM: NDArray[np.float64], client_N: Ints, rng: np.random.Generator) -> Ints:
    """Draw each sample's component by the inverse of its client's distribution function."""
    # The last edge is left out: it may be a rounding error below 1.
    edges_NM = np.cumsum(pi_KM, axis=1)[client_N, :-1]
    component_N: Ints = (rng.random((len(client_N), 1)) >= edges_NM).sum(axis=1)
    return component_N
