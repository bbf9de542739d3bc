"""Payloads that follow from a model: sketches, expert loads and answers, against plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from payload_cases import (
    CLASSES,
    COUNTS,
    EXPERTS,
    FEATURES,
    LINE,
    PARAMETERS,
    PUBLIC,
    SEED,
    TASK,
    cohort,
    one_of,
    payload,
    told,
)

from fedmoe.data.drawing import hash_keys
from fedmoe.data.federation import Task
from fedmoe.insight.payloads.gradient_sketch import count_sketch

NUMBERS = np.array(COUNTS)
KINDS = ("gradient_sketch", "expert_load", "logits")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("task", [TASK, LINE], ids=["classes", "line"])
def test_a_cohort_tells_what_its_clients_tell_one_by_one(name: str, task: Task) -> None:
    one, sources = payload(name, task), cohort(task)
    together = told(one, sources)
    for client in range(len(COUNTS)):
        for key, array in told(one, one_of(sources, client)).items():
            np.testing.assert_allclose(array[0], together[key][client], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_who_has_too_few_samples_tells_nothing(name: str) -> None:
    for fewest in (1, 2, 9, 10):
        for array in told(payload(name, min_count=fewest), cohort()).values():
            speaks = array.reshape(len(COUNTS), -1).any(axis=1)
            assert speaks.tolist() == [count >= fewest for count in COUNTS]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("task", [TASK, LINE], ids=["classes", "line"])
def test_honest_clients_are_believed_and_sizes_known(name: str, task: Task) -> None:
    one = payload(name, task, public_samples=PUBLIC)
    sent = told(one, cohort(task))
    assert {key: array.shape[1:] for key, array in sent.items()} == one.shapes
    assert all(array.dtype == np.float32 for array in sent.values())
    assert one.nbytes == sum(array[0].nbytes for array in sent.values())
    assert not one.implausible(sent, NUMBERS).any()


@pytest.mark.parametrize("name", KINDS)
def test_who_has_too_few_samples_must_not_tell_anything(name: str) -> None:
    one = payload(name, public_samples=PUBLIC)
    bold = told(payload(name, min_count=1), cohort())
    assert one.implausible(bold, NUMBERS).tolist() == [False, True, False, False]


# ------------------------------------------------------------------ gradient sketch


@pytest.mark.parametrize("size", [1, 2, 3, 64])
def test_a_sketch_is_signed_sums_divided_by_their_norm(size: int) -> None:
    sources = cohort()
    found = told(payload("gradient_sketch", sketch_size=size), sources)["gradient_sketch"]
    length = min(size, FEATURES)
    assert found.shape == (len(COUNTS), length)
    for client in (0, 3):
        expected = [0.0] * length
        for place in range(PARAMETERS):
            key = int(hash_keys(SEED, np.array(place)))
            sign = -1.0 if key >= 2**63 else 1.0
            expected[key % length] += sign * float(sources.change()[client, place])
        norm = math.sqrt(sum(value**2 for value in expected))
        np.testing.assert_allclose(found[client], np.array(expected) / norm, rtol=1e-5)


def test_inner_products_of_sketches_are_those_of_the_vectors_on_average() -> None:
    vectors = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)).double()
    true = float(vectors[0] @ vectors[1])
    sketches = [count_sketch(vectors, 16, seed) for seed in range(2000)]
    products = np.array([float(a @ b) for a, b in sketches])
    error = products.std() / math.sqrt(len(products))
    assert abs(products.mean() - true) < 4 * error < 0.2 * float(vectors[0].norm())


def test_a_model_that_has_not_moved_sketches_to_zero() -> None:
    sources = cohort()
    sources.change().zero_()
    one = payload("gradient_sketch")
    assert not told(one, sources)["gradient_sketch"].any()
    assert not one.implausible(told(one, sources), NUMBERS).any()


def test_a_sketch_is_told_in_the_first_rounds() -> None:
    one = payload("gradient_sketch", sketch_rounds=3)
    assert [one.due(round) for round in range(1, 6)] == [True, True, True, False, False]


def test_a_sketch_of_another_norm_is_refused() -> None:
    one = payload("gradient_sketch")
    spoilt = told(one, cohort())
    spoilt["gradient_sketch"][3] *= 1.01
    assert one.implausible(spoilt, NUMBERS).tolist() == [False, False, False, True]


# ------------------------------------------------------------------ expert load


@pytest.mark.parametrize("name", ["expert_load", "expert_importance"])
@pytest.mark.parametrize("change", [[0.1, 0.0], [-1.0, 1.0]])
def test_shares_that_are_none_are_refused(name: str, change: list[float]) -> None:
    one = payload("expert_load")
    spoilt = told(one, cohort())
    assert spoilt["expert_load"].shape == (len(COUNTS), EXPERTS)
    spoilt[name][0, :2] += change
    assert one.implausible(spoilt, NUMBERS).tolist() == [True, False, False, False]


# ------------------------------------------------------------------ logits


def test_answers_are_log_probabilities_of_classes() -> None:
    sources = cohort()
    found = told(payload("logits", public_samples=PUBLIC), sources)["logits"]
    for client in (0, 3):
        for sample in range(PUBLIC):
            said = [float(value) for value in sources.answers()[client, sample]]
            total = sum(math.exp(value) for value in said)
            for label in range(CLASSES):
                expected = said[label] - math.log(total)
                assert found[client, sample, label] == pytest.approx(expected, abs=1e-5)


def test_answers_of_a_regression_are_its_predictions() -> None:
    sources = cohort(LINE)
    found = told(payload("logits", LINE), sources)["logits"]
    np.testing.assert_array_equal(found[0], sources.answers()[0].numpy())


@pytest.mark.parametrize("value", [0.5, -30.0, 1e5])
def test_answers_that_are_no_probabilities_are_refused(value: float) -> None:
    one = payload("logits", public_samples=PUBLIC)
    spoilt: dict[str, Any] = told(one, cohort())
    spoilt["logits"][3, 2, spoilt["logits"][3, 2].argmax()] = value
    assert one.implausible(spoilt, NUMBERS).tolist() == [False, False, False, True]


def test_answers_are_told_in_every_so_many_th_round() -> None:
    one = payload("logits", every=3)
    assert [one.due(round) for round in range(1, 7)] == [False, False, True] * 2
