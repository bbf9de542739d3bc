"""Expected calibration error, against a loop over samples and bins."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmoe.data.federation import Task
from fedmoe.models import Linear, parameters_of
from fedmoe.training.calibration import calibration_error, calibration_gaps
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.pool import Pool

TASK = Task(kind="classification", num_features=3, num_outputs=4)


def error_written_out(probs_nO: Any, target_n: Any) -> float:
    """Guo et al. 2017, equation 3, with bins ((m - 1) / M, m / M]."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(15)]
    for probs_O, target in zip(probs_nO, target_n, strict=True):
        named = int(np.argmax(probs_O))
        confidence = float(probs_O[named])
        bins[math.ceil(confidence * 15) - 1].append((confidence, named == target))
    error = 0.0
    for one in bins:
        if one:
            confidence = sum(c for c, _ in one) / len(one)
            accuracy = sum(right for _, right in one) / len(one)
            error += len(one) / len(target_n) * abs(accuracy - confidence)
    return error


def test_it_is_that_of_a_loop() -> None:
    counts = [40, 7, 0, 1]
    generator = torch.Generator().manual_seed(0)
    y_COn = 3 * torch.randn(4, 5, 40, generator=generator)
    target_Cn = torch.randint(5, (4, 40), generator=generator)
    real_Cn = torch.arange(40) < torch.tensor(counts)[:, None]
    correct_Cn = (y_COn.argmax(dim=1) == target_Cn).float()
    y_COn = y_COn.where(real_Cn[:, None], torch.nan)  # padding may hold anything
    gap_CM = calibration_gaps(y_COn, correct_Cn, real_Cn)
    found_C = calibration_error(gap_CM, torch.tensor(counts))
    for client, count in enumerate(counts):
        probs_nO = y_COn[client, :, :count].T.double().softmax(dim=1).numpy()
        expected = error_written_out(probs_nO, target_Cn[client, :count].numpy())
        assert float(found_C[client]) == pytest.approx(expected, abs=1e-6)
    assert found_C[2] == 0 and found_C[0] > 0.05


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.25), (100.0, 0.5)])
def test_who_knows_nothing_and_who_is_too_sure(scale: float, expected: float) -> None:
    """Four classes, and the one that is named is right every second time."""
    y_1On = torch.zeros(1, 4, 10)
    y_1On[0, 2] = scale
    gap_1M = calibration_gaps(y_1On, (torch.arange(10) % 2).float()[None], torch.ones(1, 10) > 0)
    assert float(calibration_error(gap_1M, torch.tensor([10]))) == pytest.approx(expected)


def scored(shared: bool, calibration: bool, cohort_size: int, **task: Any) -> tuple[Any, Any, Any]:
    """Three clients' models, their samples, and what evaluation makes of them."""
    generator = torch.Generator().manual_seed(1)
    count_C, own = np.array([9, 0, 4]), TASK if not task else Task(**task)
    model = Linear(3, own.num_outputs)
    params = {
        name: torch.randn(1 if shared else 3, *value.shape, generator=generator)
        for name, value in parameters_of(model).items()
    }
    x_ND = torch.randn(13, 3, generator=generator)
    y_N: Tensor = torch.randint(4, (13,), generator=generator)
    if own.kind == "regression":
        y_N = torch.randn(13, own.num_outputs, generator=generator)
    rows_Cn = np.zeros((3, 9), dtype=np.int64)
    rows_Cn[0], rows_Cn[2, :4] = np.arange(9), np.arange(9, 13)
    found: Evaluation = evaluate_cohort(
        model, own, Pool(x_ND, y_N), params, rows_Cn, count_C, cohort_size, calibration=calibration
    )
    return found, params, (x_ND, y_N, rows_Cn, count_C)


@pytest.mark.parametrize("cohort_size", [1, 100])
@pytest.mark.parametrize("shared", [True, False])
def test_a_cohort_is_calibrated_client_by_client(shared: bool, cohort_size: int) -> None:
    found, params, (x_ND, y_N, rows_Cn, count_C) = scored(shared, True, cohort_size)
    for client, count in enumerate(count_C.tolist()):
        rows = rows_Cn[client, :count]
        weight, bias = (params[n][0 if shared else client] for n in ("weight", "bias"))
        probs_nO = (x_ND[rows] @ weight.T + bias).double().softmax(dim=1).numpy()
        expected = error_written_out(probs_nO, y_N[rows].numpy()) if count else 0.0
        assert float(found.calibration_error_C[client]) == pytest.approx(expected, abs=1e-6)
    plain = scored(shared, False, cohort_size)[0]
    assert plain.calibration_error_C.tolist() == [0, 0, 0]
    for name in ("loss_C", "accuracy_C", "uncertainty_C"):
        assert torch.equal(getattr(plain, name), getattr(found, name))


def test_of_a_regression_it_is_0() -> None:
    found = scored(False, True, 100, kind="regression", num_features=3, num_outputs=2)[0]
    assert found.calibration_error_C.tolist() == [0, 0, 0]
