"""Payloads of a cohort, against loops over each client's samples."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmoe.config import load_config
from fedmoe.data.federation import Task
from fedmoe.insight.payloads import Facts, Payloads, Sources


def payloads_of(kind: str, num_outputs: int, *words: str) -> Payloads:
    config = load_config(["model=linear", *words])
    task = Task(kind=kind, num_features=3, num_outputs=num_outputs)  # type: ignore[arg-type]
    return Payloads(Facts(task, config.model, config.insight, num_experts=None, seed=0))


def drawn(counts: list[int], y_Cn: Tensor, seed: int) -> Sources:
    """Samples of each client, padded with what must not be seen."""
    x_CnD = 2 * torch.randn(len(counts), max(counts), 3, generator=torch.manual_seed(seed))
    real_Cn = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
    return Sources(
        x_CnD.where(real_Cn[..., None], torch.nan), y_Cn, real_Cn,
        change=_not_of_data, load=_not_of_data, answers=_not_of_data,
        part=lambda _: torch.eye(3).expand(len(counts), 3, 3),
    )  # fmt: skip


def _not_of_data() -> Any:
    raise AssertionError("what is of data is not of a model")


def shortened(x_D: Any, clip: float | None) -> Any:
    return x_D if clip is None else x_D * min(1.0, clip / float(np.linalg.norm(x_D)))


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("min_count", [1, 2, 3])
def test_prototypes_are_sums_and_counts_of_each_clients_samples(
    min_count: int, clip: float | None
) -> None:
    counts = [5, 1, 0, 9]
    y_Cn = torch.randint(4, (4, 9), generator=torch.manual_seed(0))
    sources = drawn(counts, y_Cn, 0)
    words = [f"insight.min_count={min_count}", f"insight.clip={'null' if clip is None else clip}"]
    payloads = payloads_of("classification", 4, *words)
    stacked = payloads.by_name["prototypes"].make(sources)
    for client, count in enumerate(counts):
        for label in range(4):
            own = [i for i in range(count) if y_Cn[client, i] == label]
            told = own if len(own) >= min_count else []
            assert stacked["prototype_count"][client, label] == len(told)
            expected = np.zeros(3)
            for i in told:
                expected += shortened(sources.x_CnD[client, i].numpy(), clip)
            found = stacked["prototype_sum"][client, label]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    arrays = {name: array.numpy() for name, array in stacked.items()}
    assert not payloads.implausible(arrays, np.array(counts)).any()


@pytest.mark.parametrize("clip", [None, 2.0])
def test_statistics_give_the_exact_pooled_regression(clip: float | None) -> None:
    counts = [5, 3, 7]
    y_CnO = torch.randn(3, 7, 2, generator=torch.manual_seed(1))
    sources = drawn(counts, y_CnO, 2)
    word = f"insight.clip={'null' if clip is None else clip}"
    payloads = payloads_of("regression", 2, word)
    made = payloads.by_name["statistics"].make(sources)
    stacked = {name: array.double().numpy() for name, array in made.items()}
    rows = [
        (shortened(sources.x_CnD[c, i].numpy(), clip), y_CnO[c, i].numpy())
        for c, n in enumerate(counts)
        for i in range(n)
    ]
    design = np.array([[*features, 1.0] for features, _ in rows])
    targets = np.array([target for _, target in rows])
    pooled = np.linalg.lstsq(design, targets, rcond=None)[0]
    summed = {name: array.sum(axis=0) for name, array in stacked.items()}
    solved = np.linalg.solve(summed["statistics_xx"], summed["statistics_xy"])
    np.testing.assert_allclose(solved, pooled, atol=1e-5)
    np.testing.assert_allclose(summed["statistics_yy"], (targets**2).sum(axis=0), rtol=1e-5)
    assert not payloads.implausible(stacked_32(made), np.array(counts)).any()


def stacked_32(made: dict[str, Tensor]) -> dict[str, Any]:
    return {name: array.numpy() for name, array in made.items()}


def test_statistics_of_too_few_samples_are_not_told() -> None:
    sources = drawn([3, 2, 4], torch.ones(3, 4, 1), 3)
    made = (
        payloads_of("regression", 1, "insight.min_count_squares=3")
        .by_name["statistics"]
        .make(sources)
    )
    for array in made.values():
        assert array.flatten(1).any(dim=1).tolist() == [True, False, True]


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_size_and_shapes_are_known_beforehand(kind: str) -> None:
    payloads = payloads_of(kind, 2)
    assert payloads.by_name
    y_Cn = torch.zeros(2, 4, 2) if kind == "regression" else torch.zeros(2, 4).long()
    for payload in payloads.by_name.values():
        if not payload.of_data:
            continue
        made = payload.make(drawn([4, 3], y_Cn, 4))
        assert {name: tuple(array.shape[1:]) for name, array in made.items()} == payload.shapes
        assert {array.dtype for array in made.values()} == {torch.float32}
        assert sum(array[0].numpy().nbytes for array in made.values()) == payload.nbytes


def test_what_does_not_fit_is_not_there() -> None:
    assert "prototypes" not in payloads_of("regression", 2).by_name
    assert "statistics" not in payloads_of("classification", 2).by_name
    assert "statistics" not in payloads_of("regression", 2, "model=mlp").by_name
    fitting = payloads_of("regression", 2).fitting(["scalars", "statistics", "prototypes"])
    assert fitting == ("statistics",)
