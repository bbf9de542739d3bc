# Training of a cohort against training of each client alone; see training_oracle.py.
from dataclasses import replace
from typing import Any, get_args
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from training_oracle import MODELS, OUT, D, Dropping, Kind, Setup, make_config

from fedmoe.models import Parameters
from fedmoe.training.cohort import Cohort, Trained, train_cohort
from fedmoe.training.pool import Pool

COLUMNS = ("first_loss_C", "final_loss_C", "mean_grad_C", "std_grad_C")


def close(actual: Tensor, expected: Tensor | float) -> None:
    if isinstance(expected, float):
        expected = torch.tensor(expected)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def train(setup: Setup, cohort: Cohort) -> Trained:
    return train_cohort(
        setup.module, setup.task, setup.pool, setup.config, cohort, setup.router_losses
    )


def assert_trained_alone(setup: Setup) -> None:
    """Each client's row is what a cohort of one, and what a plain loop, make of it."""
    together = train(setup, setup.cohort())
    for client in range(setup.clients):
        alone, plain = train(setup, setup.cohort([client])), setup.plain(client)
        for name, value in together.params.items():
            close(value[client], alone.params[name][0])
            close(value[client], plain.params[name])
        for name, value in together.optimizer_state.items():
            close(value[client], alone.optimizer_state[name][0])
        for column, expected in zip(COLUMNS, plain[1:], strict=True):
            close(getattr(together, column)[client], getattr(alone, column)[0])
            close(getattr(together, column)[client], expected)


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    members = draw(
        st.lists(st.tuples(st.integers(1, 70), st.integers(0, 3)), min_size=1, max_size=5)
    )
    kind: Kind = draw(st.sampled_from(get_args(Kind)))
    return Setup(
        model=draw(st.sampled_from(MODELS)),
        kind=kind,
        config=make_config(
            draw(st.sampled_from(["sgd", "adam"])),
            momentum=draw(st.sampled_from([0.0, 0.9])),
            weight_decay=draw(st.sampled_from([0.0, 0.1])),
            batch_size=draw(st.integers(6, 80)),
            cohort_size=draw(st.integers(1, 4)),
        ),
        counts=[count for count, _ in members],
        epochs=[epochs for _, epochs in members],
        tensors_seed=draw(st.integers(0, 999)),
        seed=draw(st.integers(0, 999)),
        round=draw(st.integers(0, 99)),
        balance_weight=draw(st.sampled_from([0.0, 0.5])),
        mu=draw(st.sampled_from([0.0, 0.4])),
        rehearse=kind == "classification" and draw(st.booleans()),
        with_prior=draw(st.booleans()),
        going_on=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=50)
@given(setup=setups())
def test_nobody_notices_the_rest_of_the_cohort(setup: Setup) -> None:
    assert_trained_alone(setup)


OPTIMIZERS: dict[str, Any] = {
    "sgd": make_config(momentum=0.9, weight_decay=0.1, batch_size=8, cohort_size=3),
    "adam": make_config("adam", weight_decay=0.1, batch_size=8, cohort_size=3),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("model", MODELS)
def test_training_is_the_plain_loop(model: str, kind: Any, optimizer: str) -> None:
    setup = Setup(
        model=model,
        kind=kind,
        config=OPTIMIZERS[optimizer],
        counts=[5, 19, 8, 30, 1],
        epochs=[2, 3, 0, 2, 1],  # the order of training is not its own inverse
        balance_weight=0.5,
        mu=0.4,
        rehearse=kind == "classification",
        with_prior=True,
        going_on=True,
    )
    assert (setup.precision_C > 0).any()
    assert (setup.precision_C == 0).any()
    assert_trained_alone(setup)
    assert_trained_alone(replace(setup, balance_weight=0.0, mu=0.0, rehearse=False))


def plain_setup(**changed: Any) -> Setup:
    given: dict[str, Any] = {
        "model": "moe",
        "kind": "classification",
        "config": OPTIMIZERS["sgd"],
        "counts": [5, 19, 12],
        "epochs": [2, 1, 3],
    }
    return Setup(**{**given, **changed})


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS)
def test_what_nobody_wants_is_left_out_and_changes_nothing(model: str, optimizer: str) -> None:
    plain_sgd = make_config(batch_size=8, cohort_size=3)
    for config in (OPTIMIZERS[optimizer], plain_sgd):
        setup = plain_setup(model=model, config=config, with_prior=True, balance_weight=0.3)
        whole = train(setup, setup.cohort())
        silent = train(
            setup,
            replace(setup.cohort(), wants_gradient_norms=False, wants_optimizer_state=False),
        )
        for name, value in whole.params.items():
            close(silent.params[name], value)
        for column in ("first_loss_C", "final_loss_C"):
            close(getattr(silent, column), getattr(whole, column))
        assert silent.optimizer_state == {}
        assert silent.mean_grad_C.isnan().all()
        assert silent.std_grad_C.isnan().all()
        assert not whole.mean_grad_C.isnan().any()


def test_one_row_for_everybody_is_a_broadcast() -> None:
    setup = plain_setup(mu=0.4, with_prior=True, balance_weight=0.3)
    cohort = setup.cohort()

    def broadcast(tensors: Parameters) -> Parameters:
        return {name: value[:1].expand_as(value) for name, value in tensors.items()}

    def copied(tensors: Parameters) -> Parameters:
        return {name: value.contiguous() for name, value in broadcast(tensors).items()}

    trained = [
        train(
            setup,
            replace(
                cohort,
                params=alike(cohort.params),
                terms=[replace(t, anchor=alike(t.anchor)) for t in cohort.terms],  # type: ignore
            ),
        )
        for alike in (broadcast, copied)
    ]
    for name, value in trained[1].params.items():
        assert torch.equal(trained[0].params[name], value)
        assert not torch.equal(value[0], value[1])


@pytest.mark.parametrize("batch_size", [4, 10**9])
def test_a_batch_of_all_samples_is_no_larger_than_they_are(batch_size: int) -> None:
    config = make_config(batch_size=batch_size, cohort_size=50)
    setup = Setup(
        model="linear", kind="classification", config=config, counts=[9] * 5, epochs=[1] * 5
    )
    with mock.patch("fedmoe.training.trainer.Trainer.train", autospec=True) as trainer:
        trainer.side_effect = ZeroDivisionError
        with pytest.raises(ZeroDivisionError):
            train(setup, setup.cohort())
    assert len(trainer.call_args.args[1].client_C) == 5


def test_a_client_without_epochs_keeps_its_model_and_state() -> None:
    setup = plain_setup(epochs=[1, 0, 2], going_on=True, with_prior=True)
    cohort, trained = setup.cohort(), train(setup, setup.cohort())
    for name, value in trained.params.items():
        assert torch.equal(value[1], cohort.params[name][1])
        assert not torch.equal(value[0], cohort.params[name][0])
    for name, value in trained.optimizer_state.items():
        assert cohort.optimizer_state is not None
        assert torch.equal(value[1], cohort.optimizer_state[name][1])
    for column in COLUMNS:
        assert getattr(trained, column)[1] == 0


def test_nobody_with_anything_to_do_is_no_error() -> None:
    setup = plain_setup(epochs=[0, 0, 0])
    trained = train(setup, setup.cohort())
    for name, value in trained.params.items():
        assert torch.equal(value, setup.start[name])


def clones(tensors: Parameters | None) -> Parameters:
    return {name: value.clone() for name, value in (tensors or {}).items()}


@pytest.mark.parametrize("members", [[0, 1, 2], [1]])
def test_the_cohort_and_the_module_are_left_as_they_were(members: list[int]) -> None:
    setup = plain_setup(mu=0.4, rehearse=True, with_prior=True, going_on=True)
    cohort = setup.cohort(members)
    params, state = clones(cohort.params), clones(cohort.optimizer_state)
    own = clones(dict(setup.module.named_parameters()))
    trained = train(setup, cohort)
    for name, value in cohort.params.items():
        assert torch.equal(value, params[name])
        assert not torch.equal(value, trained.params[name])
        assert not trained.params[name].requires_grad
    for name, value in (cohort.optimizer_state or {}).items():
        assert torch.equal(value, state[name])
    for name, value in setup.module.named_parameters():
        assert torch.equal(value, own[name])
        assert value.grad is None
    fresh = setup.cohort(members)
    assert cohort.prior is not None
    assert fresh.prior is not None
    for name, value in cohort.prior.mean.items():
        assert torch.equal(value, fresh.prior.mean[name])
    assert torch.equal(cohort.lr_C, fresh.lr_C)
    np.testing.assert_array_equal(cohort.rows_Cn, fresh.rows_Cn)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_going_on_from_the_saved_state_is_not_having_stopped(optimizer: str) -> None:
    # One batch is the whole data, so the order of samples, new each epoch, plays no part.
    config = replace(OPTIMIZERS[optimizer], batch_size=64)
    setup = plain_setup(config=config, epochs=[4, 2, 4])
    whole = train(setup, setup.cohort())
    half = setup.with_epochs([2, 1, 2])
    first = train(half, half.cohort())
    again = replace(half.cohort(), params=first.params, optimizer_state=first.optimizer_state)
    second = train(half, again)
    for name, value in whole.params.items():
        close(second.params[name], value)
    for name, value in whole.optimizer_state.items():
        close(second.optimizer_state[name], value)
    afresh = train(half, replace(again, optimizer_state=None))
    assert any(not torch.allclose(afresh.params[n], v) for n, v in whole.params.items())


def test_first_and_final_loss_are_over_samples_of_the_first_and_last_epoch() -> None:
    # A learning rate of 0 keeps the loss of each sample where it was.
    setup = plain_setup(model="linear", kind="regression", counts=[5, 19, 12], epochs=[2, 1, 3])
    cohort = replace(setup.cohort(), lr_C=torch.zeros(3, dtype=torch.float64))
    trained = train(setup, cohort)
    pool = setup.pool
    for client, rows in enumerate(setup.rows):
        y = pool.x_ND[rows] @ cohort.params["weight"][client].T + cohort.params["bias"][client]
        expected = (y - pool.y_N[rows]).square().mean()
        close(trained.first_loss_C[client], expected)
        close(trained.final_loss_C[client], expected)


def test_rounds_and_seeds_change_the_order_of_samples() -> None:
    setup = plain_setup()
    trained = [
        train(setup, replace(setup.cohort(), **changed)).params["router.weight"]
        for changed in ({}, {"round": 4}, {"seed": 12}, {"client_C": setup.ids + 1}, {})
    ]
    for other in trained[1:4]:
        assert not torch.allclose(trained[0], other)
    assert torch.equal(trained[0], trained[4])


def test_single_precision_stays_single_and_close() -> None:
    setup = plain_setup(with_prior=True, mu=0.4)
    whole = setup.cohort()
    assert whole.prior is not None

    def single(tensors: Parameters) -> Parameters:
        return {name: value.float() for name, value in tensors.items()}

    cohort = replace(
        whole,
        params=single(whole.params),
        lr_C=whole.lr_C.float(),
        terms=[replace(term, anchor=single(term.anchor)) for term in whole.terms],  # type: ignore
        prior=replace(
            whole.prior, mean=single(whole.prior.mean), precision_C=whole.prior.precision_C.float()
        ),
    )
    pool = Pool(setup.pool.x_ND.float(), setup.pool.y_N)
    trained = train_cohort(setup.module, setup.task, pool, setup.config, cohort)
    for name, value in train(setup, whole).params.items():
        assert trained.params[name].dtype == torch.float32
        torch.testing.assert_close(trained.params[name].double(), value, rtol=1e-4, atol=1e-4)
    assert {value.dtype for value in trained.optimizer_state.values()} == {torch.float32}


def test_a_pool_shares_memory_with_its_arrays() -> None:
    x_ND, y_N = np.zeros((3, 2), dtype=np.float32), np.zeros(3, dtype=np.int64)
    pool = Pool.of(x_ND, y_N)
    x_ND[1, 1], y_N[2] = 4.0, 5
    assert pool.x_ND[1, 1] == 4.0
    assert pool.y_N[2] == 5


def test_a_module_with_an_if_trains_as_a_cohort_of_one() -> None:
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if float(x.sum()) > -1e9 else -y

    setup = plain_setup(model="linear", config=replace(OPTIMIZERS["sgd"], cohort_size=1))
    trained = train_cohort(Branching(D, OUT), setup.task, setup.pool, setup.config, setup.cohort())
    for name, value in train(setup, setup.cohort()).params.items():
        close(trained.params[name], value)


def test_training_turns_dropout_on() -> None:
    setup = plain_setup(model="linear", counts=[40], epochs=[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = train_cohort(
            Dropping(D, OUT).eval(), setup.task, setup.pool, setup.config, setup.cohort()
        )
    without = train(setup, setup.cohort())
    assert not torch.allclose(trained.params["weight"], without.params["weight"])


def test_dropout_repeats_with_the_seed_and_leaves_the_global_generator_alone() -> None:
    setup, model = plain_setup(model="linear", counts=[40, 7], epochs=[1, 1]), Dropping(D, OUT)

    def trained_weight(seed: int) -> Tensor:
        cohort = replace(setup.cohort(), seed=seed)
        return train_cohort(model, setup.task, setup.pool, setup.config, cohort).params["weight"]

    before = torch.random.get_rng_state()
    first = trained_weight(0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)  # whatever is drawn between two runs does not matter
    again, other = trained_weight(0), trained_weight(1)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_parameter_that_is_not_used_stays_as_it_is() -> None:
    class Idle(nn.Linear):
        def __init__(self) -> None:
            super().__init__(D, OUT)
            self.idle = nn.Parameter(torch.ones(2))

    setup = plain_setup(model="linear", counts=[5, 9], epochs=[1, 1])
    cohort = setup.cohort()
    cohort.params["idle"] = torch.ones(2, 2, dtype=torch.float64)
    config = replace(setup.config, weight_decay=0.0)
    trained = train_cohort(Idle(), setup.task, setup.pool, config, cohort)
    assert torch.equal(trained.params["idle"], cohort.params["idle"])
    assert not torch.allclose(trained.params["weight"], cohort.params["weight"])
