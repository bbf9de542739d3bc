"""All sides do the same work: the same samples, and the same model from the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.client import NumPyClient
from flwr.common import NDArrays, Scalar

from benchmarks.cases import CLIENTS, DATA, MODELS, Case, write_work
from benchmarks.plain import Work
from benchmarks.scale import PARTS, words_of
from benchmarks.sides.loop import Server, TextbookClient
from fedmoe.clients import load_experiment
from fedmoe.config import load_config, to_json
from fedmoe.models.base import as_output


@pytest.mark.parametrize("model", MODELS)
def test_the_plain_module_is_the_same_function(model: str, tmp_path: Path) -> None:
    case = Case("digits", model, 10)
    initial_loss = write_work(case, tmp_path / "work.npz")
    work = Work(tmp_path / "work.npz")
    experiment = load_experiment(to_json(load_config(case.words)))
    x_ND = torch.from_numpy(work.test_x_ND)
    expected = as_output(experiment.model(x_ND)).y.detach()
    torch.testing.assert_close(work.module()(x_ND), expected)
    log_probs = expected.log_softmax(dim=1)
    loss = -sum(float(row[y]) for row, y in zip(log_probs, work.test_y_N, strict=True)) / len(x_ND)
    assert initial_loss == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("data", DATA)
def test_every_client_has_the_same_samples(data: str, tmp_path: Path) -> None:
    case = Case(data, "linear", 10)
    write_work(case, tmp_path / "work.npz")
    work = Work(tmp_path / "work.npz")
    federation = load_experiment(to_json(load_config(case.words))).data
    assert (len(work.rows), work.sampled) == (CLIENTS, 10)
    for client in (0, 57, 99):
        x_ND, y_N = federation.client(client, "train")
        np.testing.assert_array_equal(work.client(client)[0], x_ND)
        np.testing.assert_array_equal(work.client(client)[1], y_N)
    if data == "synth":
        assert {len(rows) for rows in work.rows} == {200}


class Constant(NumPyClient):
    """Returns its own number, and says how many samples that comes from."""

    def __init__(self, value: float, count: int) -> None:
        self.value, self.count = value, count

    def fit(
        self, parameters: NDArrays, config: dict[str, Scalar]
    ) -> tuple[NDArrays, int, dict[str, Scalar]]:
        return [np.full((2, 3), self.value), np.full(2, -self.value)], self.count, {}


def test_the_loop_averages_by_samples() -> None:
    server = Server([Constant(1.0, 1), Constant(2.0, 3)], [np.zeros((2, 3)), np.zeros(2)], 2)
    server.one_round()
    np.testing.assert_allclose(server.weights[0], np.full((2, 3), 1.75))
    np.testing.assert_allclose(server.weights[1], np.full(2, -1.75))


def test_a_textbook_client_learns(tmp_path: Path) -> None:
    write_work(Case("digits", "linear", 100), tmp_path / "work.npz")
    work = Work(tmp_path / "work.npz")
    client = TextbookClient(work, 0)
    weights = [value.detach().numpy().copy() for value in client.model.parameters()]
    losses = []
    for _ in range(5):
        weights, count, metrics = client.fit(weights, {})
        losses.append(metrics["loss"])
    assert count == len(work.rows[0])
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("part", PARTS)
def test_scale_asks_for_as_many_clients_as_it_says(part: str) -> None:
    for clients, sampled in PARTS[part].sizes:
        words = words_of(PARTS[part], clients, sampled)
        share = next(w for w in words if w.startswith("strategy.fraction_train=")).partition("=")[2]
        assert int(clients * float(share)) == sampled  # as strategies count
        assert f"data.num_clients={clients}" in words
