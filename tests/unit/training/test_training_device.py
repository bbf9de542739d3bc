# Where tensors lie. There is rarely a GPU where tests run: a default device that nothing can be
# mixed with shows each tensor that is made without saying where.
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from training_oracle import MODELS, Setup, make_config

from fedmoe.errors import ConfigError
from fedmoe.training.cohort import Cohort, Trained, train_cohort
from fedmoe.training.device import resolve_device
from fedmoe.training.evaluation import Evaluation, evaluate_cohort
from fedmoe.training.pool import Pool
from fedmoe.training.trust import prototype_trust

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CASES = [
    (model, kind, optimizer, everything)
    for model in MODELS
    for kind in ("classification", "regression")
    for optimizer in ("sgd", "adam")
    for everything in (False, True)
]


def a_setup(model: str, kind: Any, optimizer: Any, everything: bool) -> Setup:
    return Setup(
        model=model,
        kind=kind,
        config=make_config(
            optimizer,
            momentum=0.9 if everything and optimizer == "sgd" else 0.0,
            weight_decay=0.1 if everything else 0.0,
            cohort_size=2,
        ),
        counts=[9, 20, 5],
        epochs=[2, 1, 3],
        balance_weight=0.3,
        mu=0.4 if everything else 0.0,
        rehearse=everything and kind == "classification",
        with_prior=everything,
        going_on=everything,
    )


def train(setup: Setup, pool: Pool, cohort: Cohort) -> Trained:
    return train_cohort(setup.module, setup.task, pool, setup.config, cohort, setup.router_losses)


def evaluate(setup: Setup, pool: Pool, shared: bool) -> Evaluation:
    cohort = setup.cohort()
    params = {name: v[:1] if shared else v for name, v in cohort.params.items()}
    return evaluate_cohort(
        setup.module, setup.task, pool, params, cohort.rows_Cn, cohort.count_C, 2
    )


@pytest.mark.parametrize(("model", "kind", "optimizer", "everything"), CASES)
def test_no_tensor_is_made_without_saying_where(
    model: str, kind: str, optimizer: str, everything: bool
) -> None:
    setup = a_setup(model, kind, optimizer, everything)
    pool, cohort = setup.pool, setup.cohort()
    silent = replace(cohort, wants_gradient_norms=False, wants_optimizer_state=False)
    params, expected = evaluate(setup, pool, shared=True), train(setup, pool, cohort)
    with torch.device("meta"):
        for asked in (cohort, silent):
            trained = train(setup, pool, asked)
            for name, value in trained.params.items():
                torch.testing.assert_close(value, expected.params[name])
        for shared in (True, False):
            scores = evaluate(setup, pool, shared)
        again = evaluate(setup, pool, shared=True)
    assert torch.equal(again.loss_C, params.loss_C)
    assert scores.uncertainty_C.device.type == "cpu"


def test_trust_is_computed_where_its_samples_lie() -> None:
    setup = a_setup("linear", "classification", "sgd", True)
    pool, cohort = setup.pool, setup.cohort()
    prototypes, known = setup.prototypes, setup.prototype_weight > 0
    with torch.device("meta"):
        samples = pool.padded(cohort.rows_Cn, cohort.count_C)
        trust = prototype_trust(*samples, prototypes, known)
    assert trust.device.type == "cpu"


def test_a_pool_knows_its_device() -> None:
    x_ND, y_N = np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64)
    pool = Pool.of(x_ND, y_N, torch.device("meta"))
    assert pool.device.type == pool.y_N.device.type == "meta"
    assert a_setup("linear", "regression", "sgd", False).pool.device.type == "cpu"


@needs_cuda
@pytest.mark.parametrize(("model", "kind", "optimizer", "everything"), CASES)
def test_a_gpu_gives_the_numbers_of_the_cpu(
    model: str, kind: str, optimizer: str, everything: bool
) -> None:
    setup, cuda = a_setup(model, kind, optimizer, everything), torch.device("cuda")
    pool = Pool(setup.pool.x_ND.to(cuda), setup.pool.y_N.to(cuda))
    on_gpu = train(setup, pool, setup.cohort())
    on_cpu = train(setup, setup.pool, setup.cohort())
    pairs = [*zip(on_gpu[2:], on_cpu[2:], strict=True)]
    for one, other in zip(on_gpu[:2], on_cpu[:2], strict=True):
        pairs.extend((value, other[name]) for name, value in one.items())
    for shared in (True, False):
        scores, expected = evaluate(setup, pool, shared), evaluate(setup, setup.pool, shared)
        pairs.append((scores.loss_C, expected.loss_C))
        pairs.append((scores.uncertainty_C, expected.uncertainty_C))
    for value, wanted in pairs:
        assert value.device.type == "cuda"
        torch.testing.assert_close(value.cpu(), wanted, rtol=1e-4, atol=1e-4)


def test_auto_is_cuda_where_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, auto in [(True, "cuda"), (False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert resolve_device("auto").type == auto
        assert resolve_device("cpu").type == "cpu"


def test_cuda_without_cuda_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"training\.device=cuda: .*no CUDA.*cpu or auto"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda").type == "cuda"
