"""Attacks on what clients tell: each succeeds without its rule, and fails with it.

Clients train a linear model by one step on all of their samples. What no rule stops is here, too,
in tests that say `stays_open`: docs/insight-disclosure.md lists it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from fedmoe.clients.experiment import Experiment
from fedmoe.clients.local import train_clients
from fedmoe.clients.requests import Settings, TrainRequest
from fedmoe.clients.states import StackedStates
from fedmoe.config import load_config
from fedmoe.data.federation import FederatedData, Rows, Task
from fedmoe.insight.payloads.gradient_sketch import count_sketch
from fedmoe.insight.payloads.products import unpacked
from fedmoe.messages.arrays import Stack

FEATURES, LABELS = 8, 3
CLASSES = Task(kind="classification", num_features=FEATURES, num_outputs=LABELS)
LINE = Task(kind="regression", num_features=FEATURES, num_outputs=1)
ONE_STEP = [
    "model=linear", "training.epochs=1", "training.batch_size=64", "training.momentum=0",
    "training.learning_rate=0.5",
]  # fmt: skip
X_ND = np.random.default_rng(0).uniform(-1, 1, (40, FEATURES)).astype(np.float32)
# By client: which samples it has. The first has one, the second two of one class.
OWN = [[0], [1, 2], list(range(3, 40))]
Y_N = np.array([2, 1, 1, *np.random.default_rng(1).integers(0, 2, 37)])
Y_N[39] = 2  # the third client's only sample of this class


def experiment(
    task: Task,
    words: Sequence[str] = (),
    own: Sequence[Sequence[int]] = OWN,
    x_ND: NDArray[Any] = X_ND,
) -> Experiment:
    nothing = Rows.pack([np.zeros(0, np.int64)] * len(own))
    data = FederatedData(
        name="few",
        origin="synthetic",
        task=task,
        x_ND=x_ND,
        y_N=Y_N if task is CLASSES else x_ND[:, :1] ** 2,
        parts={
            "train": Rows.pack([np.array(rows) for rows in own]),
            "validation": nothing,
            "test": nothing,
        },
    )
    return Experiment.of(load_config([*ONE_STEP, *words]), data)


def told(
    payload: str,
    *words: str,
    task: Task = CLASSES,
    own: Sequence[Sequence[int]] = OWN,
    x_ND: NDArray[Any] = X_ND,
) -> dict[str, NDArray[Any]]:
    """What clients tell after a round from the shared model, (C, ...) by name.

    The payload, the weights as `weight` and `bias`, and the numbers.
    """
    made = experiment(task, words, own, x_ND)
    request = TrainRequest(
        clients=np.arange(len(own)),
        settings=Settings(round=1, payloads=(payload,) if payload else ()),
        params={name: value[None] for name, value in made.shared.items()},
    )
    records = train_clients(made, request, StackedStates())
    found: dict[str, NDArray[Any]] = {}
    for record in records.values():
        if isinstance(record, Stack):
            found |= {name: tensor.numpy() for name, tensor in record.tensors.items()}
        else:
            found |= record
    return found


def is_told(guess: NDArray[Any], sample: int) -> bool:
    return bool(np.allclose(guess, X_ND[sample], atol=1e-3))


# ------------------------------------------------------------------ sums of data


def test_the_prototype_of_one_sample_is_the_sample() -> None:
    def attack(client: int, label: int, fewest: int) -> NDArray[Any]:
        found = told("prototypes", f"insight.min_count={fewest}")
        count = found["prototype_count"][client, label]
        mean: NDArray[Any] = found["prototype_sum"][client, label] / max(count, 1)
        return mean

    for client, sample in ((0, 0), (2, 39)):
        assert is_told(attack(client, 2, fewest=1), sample)
        assert not attack(client, 2, fewest=2).any()
    assert attack(2, 1, fewest=2).any()  # others still tell


def solve_two(sum_D: NDArray[Any], products_DD: NDArray[Any]) -> list[NDArray[Any]]:
    """Two samples from a + b and a a' + b b': (a - b)(a - b)' is twice the second less the first's.

    Its only eigenvector is a - b, up to a sign, which but exchanges the two.
    """
    values, vectors = np.linalg.eigh(2 * products_DD - np.outer(sum_D, sum_D))
    difference_D = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
    return [(sum_D + difference_D) / 2, (sum_D - difference_D) / 2]


@pytest.mark.parametrize("covariance", ["pooled", "class"])
def test_sums_and_products_of_two_samples_give_both_away(covariance: str) -> None:
    def attack(fewest: int) -> list[NDArray[Any]]:
        words = f"insight.covariance={covariance}", f"insight.min_count_squares={fewest}"
        found = told("gaussians", *words)
        products = found["gaussian_products"][1]
        packed = products if covariance == "pooled" else products[1]
        return solve_two(found["gaussian_sum"][1, 1], unpacked(packed))

    guesses = attack(fewest=2)
    assert any(is_told(guess, 1) for guess in guesses) and any(is_told(g, 2) for g in guesses)
    assert not np.any(attack(fewest=3))


def test_sums_and_squares_of_two_samples_give_each_feature_s_pair_away() -> None:
    def attack(fewest: int) -> NDArray[Any]:
        words = f"insight.min_count_squares={fewest}", "insight.covariance=diagonal"
        found = told("gaussians", *words)
        total_D, squares_D = found["gaussian_sum"][1, 1], found["gaussian_squares"][1, 1]
        apart_D = np.sqrt(np.maximum(2 * squares_D - total_D**2, 0))
        return np.stack([total_D - apart_D, total_D + apart_D]) / 2

    np.testing.assert_allclose(attack(fewest=2), np.sort(X_ND[[1, 2]], axis=0), atol=1e-3)
    assert not attack(fewest=3).any()


def test_second_moments_of_one_sample_are_the_sample_up_to_its_sign() -> None:
    def attack(fewest: int) -> NDArray[Any]:
        found = told("statistics", f"insight.min_count_squares={fewest}", task=LINE)
        values, vectors = np.linalg.eigh(found["statistics_xx"][0, :-1, :-1])
        guess: NDArray[Any] = vectors[:, -1] * np.sqrt(max(values[-1], 0.0))
        return guess

    guess = attack(fewest=1)
    assert is_told(guess, 0) or is_told(-guess, 0)
    assert not attack(fewest=3).any()


def test_the_column_of_ones_gives_the_sign_away_and_two_samples() -> None:
    def attack(client: int, fewest: int) -> list[NDArray[Any]]:
        found = told("statistics", f"insight.min_count_squares={fewest}", task=LINE)
        xx_PP = found["statistics_xx"][client]
        sum_D, products_DD = xx_PP[:-1, -1], xx_PP[:-1, :-1]
        return [sum_D, *solve_two(sum_D, products_DD)]

    assert is_told(attack(0, fewest=1)[0], 0)
    guesses = attack(1, fewest=2)
    assert any(is_told(guess, 1) for guess in guesses) and any(is_told(g, 2) for g in guesses)
    assert not np.any(attack(0, fewest=3)) and not np.any(attack(1, fewest=3))
    assert np.any(attack(2, fewest=3))


@pytest.mark.parametrize(
    ("payload", "rule", "fewest"),
    [("prototypes", "min_count", 2), ("gaussians", "min_count_squares", 3)],
)
def test_a_class_of_few_samples_is_not_seen(payload: str, rule: str, fewest: int) -> None:
    def attack(fewest: int) -> list[set[int]]:
        """Which classes each client has."""
        found = told(payload, f"insight.{rule}={fewest}")
        counts = found[f"{payload.removesuffix('s')}_count"]
        return [set(np.flatnonzero(row).tolist()) for row in counts]

    assert attack(fewest=1) == [{2}, {1}, {0, 1, 2}]
    seen = attack(fewest)
    # Of classes with more samples the support stays open.
    assert seen[0] == set() and seen[2] == {0, 1}


def test_one_large_sample_does_not_stand_for_the_sum() -> None:
    loud_ND = X_ND * np.where(np.arange(40) == 3, 1000, 1).astype(np.float32)[:, None]

    def attack(clip: str) -> float:
        """How much of the sum's direction is the large sample's."""
        found = told("prototypes", f"insight.clip={clip}", own=[range(3, 20)], x_ND=loud_ND)
        total_D = found["prototype_sum"][0, Y_N[3]]
        size = np.linalg.norm(total_D) * np.linalg.norm(X_ND[3])
        return float(np.abs(total_D @ X_ND[3]) / size)

    assert attack("null") > 0.9999
    assert attack("1.0") < 0.9


# ------------------------------------------------------------------ what training tells


def update_of(x_D: NDArray[Any], label: int, start: dict[str, Any]) -> NDArray[Any]:
    """Minus the gradient of one sample, in the order of the model's parameters."""
    logits = start["weight"] @ x_D + start["bias"]
    probs = np.exp(logits - logits.max())
    error_O = np.eye(LABELS)[label] - probs / probs.sum()
    parts = {"weight": np.outer(error_O, x_D).ravel(), "bias": error_O}
    return np.concatenate([parts[name] for name in start])


def invert_sketch(sketch_m: NDArray[Any], made: Experiment) -> NDArray[Any]:
    """The inputs whose update, for some label, has the sketch; the best of a few starts."""
    start = {name: value.double().numpy() for name, value in made.shared.items()}

    def gap(x_D: NDArray[Any], label: int) -> NDArray[Any]:
        vector = torch.from_numpy(update_of(x_D, label, start))[None]
        own_m = count_sketch(vector, len(sketch_m), made.config.seed)[0].numpy()
        difference: NDArray[Any] = own_m / np.linalg.norm(own_m) - sketch_m
        return difference

    rng = np.random.default_rng(3)
    tried = [
        least_squares(gap, rng.uniform(-1, 1, FEATURES), args=(label,))
        for label in range(LABELS) for _ in range(3)
    ]  # fmt: skip
    best: NDArray[Any] = min(tried, key=lambda one: one.cost).x
    return best


def test_a_sketch_of_one_sample_s_step_can_be_inverted() -> None:
    made = experiment(CLASSES)
    weights = told("")
    start = made.shared
    moved = [torch.from_numpy(weights[name][0]) - start[name] for name in start]
    vector = torch.cat([part.flatten() for part in moved])[None]

    def attack(size: int) -> NDArray[Any]:
        sketch_m = count_sketch(vector, size, made.config.seed)[0].double().numpy()
        return invert_sketch(sketch_m / np.linalg.norm(sketch_m), made)

    # Without the rules: of a client with one sample, and with more numbers than features.
    assert is_told(attack(24), 0)
    assert not is_told(attack(FEATURES), 0)
    # With both.
    found = told("gradient_sketch", "insight.sketch_size=24")["gradient_sketch"]
    assert found.shape == (3, FEATURES)
    assert not found[0].any() and found[1:].any(axis=1).all()


def test_a_weight_update_of_one_sample_s_step_is_the_sample_and_stays_open() -> None:
    """x = dL/dW_i / dL/db_i; the rules are of insights, and weights are not insights."""
    start = experiment(CLASSES).shared
    after = told("", "insight.min_count=2")
    weight_OD = after["weight"][0] - start["weight"].numpy()
    bias_O = after["bias"][0] - start["bias"].numpy()
    row = int(np.abs(bias_O).argmax())
    assert is_told(weight_OD[row] / bias_O[row], 0)
    assert bias_O.argmax() == Y_N[0]  # iDLG: the sign tells the label, too


def test_answers_of_a_linear_model_give_it_away_and_stay_open() -> None:
    """But not those of a client whose only sample the update would be."""
    words = ["insight.public_samples=20", "insight.every=1"]
    found = told("logits", *words)
    public = experiment(CLASSES, words).public_SD.double().numpy()
    design = np.concatenate([public, np.ones((20, 1))], axis=1)

    for client in (1, 2):
        # Each answer's own constant, the log of the sum, cancels between classes.
        answers_SO = found["logits"][client].astype(np.float64)
        differences = answers_SO[:, 1:] - answers_SO[:, :1]
        solved = np.linalg.lstsq(design, differences, rcond=None)[0]
        whole = np.concatenate([found["weight"][client], found["bias"][client][:, None]], axis=1)
        np.testing.assert_allclose(solved.T, whole[1:] - whole[:1], atol=1e-3)
    assert not found["logits"][0].any()


def test_membership_by_loss_stays_open() -> None:
    """Who knows the first model can replay a client's round for each sample that it may have."""
    reported = told("")["final_loss"][0]
    replayed = [told("", own=[[candidate]])["final_loss"][0] for candidate in range(10)]
    matches = np.flatnonzero(np.isclose(replayed, reported, rtol=1e-6))
    assert matches.tolist() == [0]


def test_what_is_told_before_and_after_a_sample_comes_stays_open() -> None:
    before, after = (told("prototypes", own=[list(range(3, last))]) for last in (20, 21))
    difference_OD = after["prototype_sum"][0] - before["prototype_sum"][0]
    assert is_told(difference_OD[Y_N[20]], 20)
