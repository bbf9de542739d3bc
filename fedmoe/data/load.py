"""From a configuration to every client's data: source, partition, groups, split, scaling.

Letters: N samples, D features, O outputs, K clients, S public inputs.
"""

from dataclasses import replace

import numpy as np

from fedmoe.data.drawing import Stream, generator
from fedmoe.data.federation import Dataset, FederatedData, Floats, Ints
from fedmoe.data.groups import transform
from fedmoe.data.lazy import LazyDataset, LazyFederation
from fedmoe.data.partition import PARTITIONERS
from fedmoe.data.sites import Site, empty_dataset, is_of_sites, read_site
from fedmoe.data.sources import custom, read_source
from fedmoe.data.split import split
from fedmoe.errors import DataError
from fedmoe.schema import CustomDataConfig, DataConfig, PartitionConfig

Federation = FederatedData | LazyFederation


def load_federation(
    data: DataConfig,
    partition: PartitionConfig,
    seed: int,
    held_out: int = 0,
    site: Site | None = None,
) -> Federation:
    """Load a data set and divide it among clients, the same way for the same seed.

    Args:
        data: which source, and the shares of validation and test samples.
        partition: who gets which samples.
        seed: of everything that is drawn here; numpy's global state is neither used nor changed.
        held_out: samples that no client gets; their inputs are public.
        site: whose table this process has, where each client brings its own.

    Returns:
        Every client's data; or, of a source that makes them on demand, what makes them.

    Raises:
        ConfigError: `data.factory` names nothing registered, or does not take `data.options`.
        DataError: for data that cannot be had, read, or partitioned as asked.
    """
    if site is not None or is_of_sites(data):
        return _of_sites(data, partition, seed, held_out, site)
    if isinstance(data, CustomDataConfig):
        dataset = custom.load(data, seed)
    else:
        dataset = read_source(data, generator(seed, Stream.SOURCE))
    if isinstance(dataset, LazyDataset):
        if held_out:
            raise DataError(
                f"insight.public=held_out: {dataset.name} makes each client's samples on demand, "
                "so there is nothing to hold out of; choose insight.public=gaussian"
            )
        return _on_demand(dataset, data, partition, seed)
    public_SD = dataset.x_ND[:0]
    if held_out:
        dataset, public_SD = hold_out(dataset, held_out, generator(seed, Stream.PUBLIC))
    divide = PARTITIONERS[partition.name]
    rows = divide(dataset, partition, generator(seed, Stream.PARTITION))
    dataset, group_K = transform(dataset, rows, partition, generator(seed, Stream.GROUPS))
    parts = split(rows, data.validation_fraction, data.test_fraction, generator(seed, Stream.SPLIT))
    if dataset.standardise:
        everything_ND = np.concatenate([dataset.x_ND, public_SD])
        scaled_ND = standardised(everything_ND, parts["train"].order)
        dataset = replace(dataset, x_ND=scaled_ND[: len(dataset.x_ND)])
        public_SD = scaled_ND[len(dataset.x_ND) :]
    return FederatedData(
        name=dataset.name,
        origin=dataset.origin,
        task=dataset.task,
        x_ND=dataset.x_ND,
        y_N=dataset.y_N,
        parts=parts,
        client_names=dataset.client_names if partition.name == "natural" else (),
        group_K=group_K,
        truth=dataset.truth,
        public_SD=public_SD if held_out else None,
    )


def hold_out(dataset: Dataset, count: int, rng: np.random.Generator) -> tuple[Dataset, Floats]:
    """Take some samples out of a data set.

    Args:
        dataset: not yet divided; left as it was.
        count: how many to take.
        rng: chooses them.

    Returns:
        The data set without them, in its order, and the inputs (S, D) of those taken.

    Raises:
        DataError: there are not so many.
    """
    total = len(dataset.x_ND)
    if count >= total:
        raise DataError(
            f"insight.public_samples={count}: must be below the {total} samples of {dataset.name}"
        )
    taken_S = rng.choice(total, count, replace=False)
    stays_N = np.full(total, True)
    stays_N[taken_S] = False
    rest = replace(
        dataset,
        x_ND=dataset.x_ND[stays_N],
        y_N=dataset.y_N[stays_N],
        client_N=None if dataset.client_N is None else dataset.client_N[stays_N],
    )
    return rest, dataset.x_ND[taken_S]


def pooled(federation: Federation) -> FederatedData:
    """Every client's data in one pool, made now if need be; for tests and studies."""
    if isinstance(federation, LazyFederation):
        return federation.only(np.arange(federation.num_clients))
    return federation


def standardised(x_ND: Floats, train_rows: Ints) -> Floats:
    """Shift and scale each feature to mean 0 and deviation 1 over the training samples.

    Only training samples count, so that nothing leaks from the other parts. A feature that is
    constant over them is shifted and not scaled.

    Args:
        x_ND: float32 features of the pool.
        train_rows: rows of all clients' training parts.

    Returns:
        float32 (N, D).
    """
    train = x_ND[train_rows].astype(np.float64)
    deviation_D = train.std(axis=0)
    deviation_D[deviation_D == 0.0] = 1.0  # exactly 0 for equal float32 summed in float64
    scaled: Floats = ((x_ND - train.mean(axis=0)) / deviation_D).astype(np.float32)
    return scaled


def class_counts(data: FederatedData) -> Ints:
    """Samples of each client by label, over all parts.

    Args:
        data: any federation.

    Returns:
        int64 (K, O) for classification; for regression (K, 1), the samples of each client.
    """
    if data.task.kind == "regression":
        return sum(
            (rows.counts_K for rows in data.parts.values()),
            start=np.zeros(data.num_clients, dtype=np.int64),
        )[:, None]
    labels = data.task.num_outputs
    counts = np.zeros(data.num_clients * labels, dtype=np.int64)
    for rows in data.parts.values():
        owner = np.repeat(np.arange(data.num_clients), rows.counts_K)
        cell = owner * labels + data.y_N[rows.order].astype(np.int64)
        counts += np.bincount(cell, minlength=len(counts))
    return counts.reshape(data.num_clients, labels)


def _of_sites(
    data: DataConfig, partition: PartitionConfig, seed: int, held_out: int, site: Site | None
) -> FederatedData:
    """A federation of which this process has the samples of one client, or of none."""
    clients = getattr(partition, "num_clients", None)
    if held_out or clients is None:
        key = "insight.public=held_out" if held_out else f"partition={partition.name}"
        raise DataError(f"{key}: each client brings its own table, so there is nothing to divide")
    dataset = empty_dataset(data) if site is None else read_site(data, site, clients)
    own, whose = np.arange(len(dataset.x_ND)), None if site is None else site.client
    rows = [own if client == whose else own[:0] for client in range(clients)]
    parts = split(rows, data.validation_fraction, data.test_fraction, generator(seed, Stream.SPLIT))
    x_ND = dataset.x_ND
    if site is not None and dataset.standardise:  # by what this client alone knows
        x_ND = standardised(x_ND, parts["train"].order)
    return FederatedData(
        name=dataset.name, origin=dataset.origin, task=dataset.task, x_ND=x_ND, y_N=dataset.y_N,
        parts=parts,
    )  # fmt: skip


def _on_demand(
    dataset: LazyDataset, data: DataConfig, partition: PartitionConfig, seed: int
) -> LazyFederation:
    """A federation that makes its clients, of whom the first has been tried."""
    if partition.name != "natural":
        raise DataError(
            f"{partition.name}: {dataset.name} makes each client's samples on demand, so there "
            "is nothing to divide; choose partition=natural"
        )
    federation = LazyFederation(
        dataset=dataset,
        min_samples=partition.min_samples,
        validation_fraction=data.validation_fraction,
        test_fraction=data.test_fraction,
        seed=int(generator(seed, Stream.SPLIT).integers(2**63)),
    )
    federation.only(np.zeros(1, dtype=np.int64))
    return federation
