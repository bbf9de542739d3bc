"""A client as an object: on its own, and before it has a federation."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmoe.clients import Client, Experiment, load_experiment
from fedmoe.clients.models import global_model
from fedmoe.clients.requests import EvaluateRequest
from fedmoe.config import load_config, to_json
from fedmoe.data import pooled
from fedmoe.errors import ConfigError, RunError
from fedmoe.models import parameters_of


def experiment_of(*words: str) -> Experiment:
    return load_experiment(
        to_json(load_config(["partition.num_clients=4", "model=linear", *words]))
    )


@pytest.mark.parametrize(
    "use",
    [
        lambda client: client.get_parameters({}),
        lambda client: client.fit([], {}),
        lambda client: client.evaluate([], {}),
        lambda client: client.data(),
        lambda client: client.model(),
    ],
    ids=["get_parameters", "fit", "evaluate", "data", "model"],
)
def test_before_it_has_a_federation_it_says_so(use: object) -> None:
    assert callable(use)
    with pytest.raises(RunError, match=r"^client 3 belongs to no federation yet; let a"):
        use(Client(client_id=3))


@pytest.mark.parametrize("client_id", [-1, 1.5, "first"])
def test_its_id_is_a_number(client_id: Any) -> None:
    with pytest.raises(ConfigError, match=f"client_id={client_id}: must be a whole number of at"):
        Client(client_id)


def test_it_must_be_one_of_the_clients() -> None:
    client = Client(np.int64(4), experiment_of())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="client_id=4: digits is divided among clients 0 to 3"):
        client.data()


def test_its_data_are_its_own() -> None:
    experiment = experiment_of()
    data = pooled(experiment.data)
    for part in ("train", "validation", "test"):
        x, y = Client(2, experiment).data(part)
        rows = data.parts[part].of(2)
        np.testing.assert_array_equal(x, data.x_ND[rows])
        np.testing.assert_array_equal(y, data.y_N[rows])


def test_what_it_was_trained_to_is_a_model() -> None:
    client = Client(1, experiment_of())
    arrays, count, _ = client.fit(client.get_parameters({}), {})
    assert count == len(client.data()[1])
    trained = parameters_of(client.model(arrays))
    for value, array in zip(trained.values(), arrays, strict=True):
        np.testing.assert_array_equal(value.numpy(), array)
    loss, _, scores = client.evaluate(arrays, {})
    x, y = (torch.from_numpy(array) for array in client.data("test"))
    with torch.no_grad():
        answers = client.model(arrays)(x).y
    assert float(torch.nn.functional.cross_entropy(answers, y)) == pytest.approx(loss, abs=1e-6)
    assert scores["test-global-loss"] == loss


def test_alone_it_keeps_what_is_private_to_it() -> None:
    """A local expert and gate stay with the client; the global expert comes and goes."""
    experiment = experiment_of("strategy=local_global")
    client, other = Client(1, experiment), Client(1, experiment)
    sent = client.get_parameters({})
    arrays, _, _ = client.fit(sent, {})
    mine, before = parameters_of(client.model(arrays)), parameters_of(other.model(sent))
    for number, array in enumerate(arrays):
        name = list(experiment.shared)[number]
        np.testing.assert_array_equal(mine[name][0].numpy(), array[0])
        assert not torch.equal(mine[name][1], before[name][1])
    request = EvaluateRequest(
        clients=np.array([1]),
        params={n: torch.tensor(a)[None] for n, a in zip(experiment.shared, arrays, strict=True)},
    )
    shared = global_model(experiment, request)
    assert shared is not None
    assert [len(p) for n, p in parameters_of(shared).items() if n.startswith("experts.")] == [1, 1]


def test_without_anything_sent_its_model_is_its_own() -> None:
    experiment = experiment_of()
    for name, value in parameters_of(Client(0, experiment).model()).items():
        assert torch.equal(value, experiment.initial[name])
