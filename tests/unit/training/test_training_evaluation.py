# Evaluation of a cohort against a loop over clients and samples.
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_oracle import MODELS, OUT, D, Dropping, Setup, make_config, plain_forward

from fedmoe.data import Task
from fedmoe.models import Linear, Parameters
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.pool import Pool


def evaluate(
    setup: Setup, params: Parameters, extra: int = 0, module: nn.Module | None = None
) -> Evaluation:
    """Scores in single precision; each client's rows are padded by `extra` more."""
    cohort, pool = setup.cohort(), setup.pool
    y_N = pool.y_N if setup.kind == "classification" else pool.y_N.float()
    return evaluate_cohort(
        module or setup.module,
        setup.task,
        Pool(pool.x_ND.float(), y_N),
        {name: value.float() for name, value in params.items()},
        np.pad(cohort.rows_Cn, ((0, 0), (0, extra))),
        cohort.count_C,
        setup.config.cohort_size,
    )


def plain_scores(setup: Setup, params: Parameters, client: int) -> tuple[float, float, float]:
    """Loss, accuracy and uncertainty of one client, one sample at a time."""
    losses, right, entropies = [], [], []
    for row in setup.rows[client].tolist():
        y, _ = plain_forward(setup.model, params, setup.pool.x_ND[row : row + 1])
        target = setup.pool.y_N[row]
        if setup.kind == "regression":
            losses.append(float((y[0] - target).square().sum()) / OUT)
            continue
        shares = (y[0] - y[0].max()).exp()
        probs = (shares / shares.sum()).tolist()
        losses.append(-math.log(probs[int(target)]))
        right.append(float(probs.index(max(probs)) == int(target)))
        entropies.append(-sum(p * math.log(p) for p in probs if p) / math.log(OUT))
    if not losses:
        return 0.0, 0.0, 0.0
    if setup.kind == "regression":
        return float(np.mean(losses)), 0.0, math.sqrt(np.mean(losses))
    return float(np.mean(losses)), float(np.mean(right)), float(np.mean(entropies))


@settings(deadline=None, max_examples=30)
@given(
    model=st.sampled_from(MODELS),
    kind=st.sampled_from(["classification", "regression"]),
    counts=st.lists(st.integers(0, 25), min_size=1, max_size=6),
    cohort_size=st.integers(1, 7),
    tensors_seed=st.integers(0, 999),
    extra=st.integers(0, 3),
    shared=st.sampled_from(["none", "all", "some"]),
)
def test_every_client_is_scored_on_its_own_samples_alone(
    model: str,
    kind: str,
    counts: list[int],
    cohort_size: int,
    tensors_seed: int,
    extra: int,
    shared: str,
) -> None:
    setup = Setup(
        model=model,
        kind=kind,  # type: ignore[arg-type]
        config=make_config(cohort_size=cohort_size),
        counts=counts,
        epochs=[1] * len(counts),
        tensors_seed=tensors_seed,
    )
    names = list(setup.start)
    one = {"none": [], "all": names, "some": names[::2]}[shared]
    params = {name: p[:1] if name in one else p for name, p in setup.start.items()}
    scores = evaluate(setup, params, extra)
    assert scores.count_C.tolist() == counts
    for client in range(setup.clients):
        own = {name: value[0 if name in one else client] for name, value in params.items()}
        loss, accuracy, uncertainty = plain_scores(setup, own, client)
        assert scores.loss_C[client].item() == pytest.approx(loss, rel=1e-5, abs=1e-5)
        assert scores.uncertainty_C[client].item() == pytest.approx(uncertainty, rel=1e-5, abs=1e-5)
        if kind == "regression":
            assert scores.accuracy_C is None
        else:
            assert scores.accuracy_C is not None
            assert scores.accuracy_C[client].item() == pytest.approx(accuracy, abs=1e-6)
            assert 0.0 <= scores.uncertainty_C[client].item() <= 1.0


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 10, 62])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e4])
def test_uncertainty_is_between_0_and_1(classes: int, scale: float) -> None:
    task = Task(kind="classification", num_features=D, num_outputs=classes)
    x_ND = np.random.default_rng(0).normal(size=(64, D)).astype(np.float32)
    pool = Pool.of(x_ND, np.zeros(64, dtype=np.int64))
    generator = torch.Generator().manual_seed(classes)
    params = {
        "weight": scale * torch.randn(1, classes, D, generator=generator),
        "bias": torch.zeros(1, classes),
    }
    rows_Cn, count_C = np.arange(64).reshape(4, 16), np.array([16, 9, 3, 1])
    scores = evaluate_cohort(Linear(D, classes), task, pool, params, rows_Cn, count_C, 3)
    assert (scores.uncertainty_C >= 0.0).all()
    assert (scores.uncertainty_C <= 1.0).all()
    if scale == 0.0 and classes > 1:
        torch.testing.assert_close(scores.uncertainty_C, torch.ones(4))
    if scale == 1e4 or classes == 1:
        assert (scores.uncertainty_C < 0.01).all()


@pytest.mark.parametrize("shared", [True, False])
def test_of_equally_likely_classes_the_first_is_the_answer(shared: bool) -> None:
    task = Task(kind="classification", num_features=D, num_outputs=3)
    pool = Pool.of(np.ones((12, D), dtype=np.float32), np.arange(12) // 4)
    params = {"weight": torch.zeros(1 if shared else 3, 3, D), "bias": torch.zeros(3)[None]}
    params["bias"] = params["bias"].expand(len(params["weight"]), 3)
    rows_Cn, count_C = np.arange(12).reshape(3, 4), np.array([4, 4, 4])
    scores = evaluate_cohort(Linear(D, 3), task, pool, params, rows_Cn, count_C, 10)
    assert scores.accuracy_C is not None
    assert scores.accuracy_C.tolist() == [1.0, 0.0, 0.0]


def test_nobody_with_samples_is_no_error() -> None:
    setup = Setup(
        model="mlp", kind="classification", config=make_config(), counts=[0, 0], epochs=[1, 1]
    )
    scores = evaluate(setup, setup.start)
    assert scores.loss_C.tolist() == scores.uncertainty_C.tolist() == [0.0, 0.0]


def test_scores_carry_no_gradient() -> None:
    setup = Setup(
        model="linear", kind="regression", config=make_config(), counts=[3, 2], epochs=[1, 1]
    )
    params = {name: value.requires_grad_() for name, value in setup.start.items()}
    assert not evaluate(setup, params).loss_C.requires_grad


def test_evaluation_turns_dropout_off() -> None:
    setup = Setup(
        model="linear", kind="regression", config=make_config(), counts=[9, 4], epochs=[1, 1]
    )
    scores = evaluate(setup, setup.start, module=Dropping(D, OUT))
    torch.testing.assert_close(scores.loss_C, evaluate(setup, setup.start).loss_C)
