"""FedEx against exponentiated gradient written out client by client."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from told import add_round

from fedmoe.insight import Memory
from fedmoe.insight.policies import Setting
from fedmoe.insight.policies.hyperparameters import Hyperparameters
from fedmoe.schema import HyperparametersPolicyConfig

CONFIG = HyperparametersPolicyConfig(
    learning_rates=(0.3, 1.0, 3.0), epochs=(1, 4), schedule="adaptive", baseline=0.0
)
RNG = np.random.default_rng(0)


def columns(clients: int) -> dict[str, Any]:
    return {
        "validation_loss": RNG.uniform(0.5, 2.0, clients).tolist(),
        "validation_examples": RNG.integers(1, 6, clients).tolist(),
    }


ROUNDS = [columns(9), columns(7), columns(9)]


def policy(config: HyperparametersPolicyConfig = CONFIG, seed: int = 3) -> Hyperparameters:
    made = Hyperparameters(config)
    made.setting = Setting(seed=seed)
    return made


def everybody(told: dict[str, Any]) -> dict[int, int | None]:
    return {client: client for client in range(len(told["validation_loss"]))}


def learned(one: Hyperparameters, rounds: list[dict[str, Any]], first: int = 1) -> Memory:
    memory = Memory(9)
    for number, told in enumerate(rounds, start=first):
        add_round(memory, number, told)
        one.answered(everybody(told))
        one.learn(memory, number)
    return memory


def one_round(
    theta: list[float], drawn: list[int], told: dict[str, Any], baseline: float, step: float
) -> list[float]:
    """theta_j exp(-eta g_j) / Z, client by client; `step` is eta times max |g|."""
    total = sum(told["validation_examples"])
    gradient = [0.0] * len(theta)
    for k, j in enumerate(drawn):
        weight = told["validation_examples"][k] / total
        gradient[j] += weight * (told["validation_loss"][k] - baseline) / theta[j]
    largest = max(abs(g) for g in gradient)
    raised = [t * math.exp(-step / largest * g) for t, g in zip(theta, gradient, strict=True)]
    return [one / sum(raised) for one in raised]


def mean_loss(told: dict[str, Any]) -> float:
    losses, counts = told["validation_loss"], told["validation_examples"]
    return float(sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts))


def test_a_configuration_is_a_rate_with_a_number_of_epochs() -> None:
    choices = [one.numbers for one in policy().choices]
    assert choices == [
        {"learning_rate": rate, "epochs": epochs} for rate in (0.3, 1.0, 3.0) for epochs in (1, 4)
    ]
    assert [one.numbers for one in policy(replace(CONFIG, epochs=None)).choices] == [
        {"learning_rate": rate} for rate in (0.3, 1.0, 3.0)
    ]


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_probabilities_move_as_the_formula_says(discount: float) -> None:
    one = policy(replace(CONFIG, schedule="aggressive", baseline=discount))
    memory, theta = Memory(9), [1 / 6] * 6
    for number, told in enumerate(ROUNDS, start=1):
        drawn = [one.draw(client) for client in everybody(told)]
        means = [mean_loss(past) for past in ROUNDS[:number]]
        weights = [discount**age for age in reversed(range(number))]
        baseline = sum(m * w for m, w in zip(means, weights, strict=True)) / sum(weights)
        theta = one_round(theta, drawn, told, baseline, math.sqrt(2 * math.log(6)))
        add_round(memory, number, told)
        one.answered(everybody(told))
        one.learn(memory, number)
        np.testing.assert_allclose(one.theta_J, theta, rtol=1e-10)
        assert one.decisions["baseline"] == pytest.approx(baseline)


@pytest.mark.parametrize(
    ("schedule", "divisor"),
    [
        ("aggressive", lambda largest: largest[-1]),
        ("adaptive", lambda largest: math.sqrt(sum(one**2 for one in largest))),
        ("root", lambda largest: math.sqrt(len(largest))),
        ("constant", lambda largest: 1.0),
    ],
)
def test_steps_follow_their_schedule(
    schedule: Literal["aggressive", "adaptive", "root", "constant"], divisor: Any
) -> None:
    one = policy(replace(CONFIG, schedule=schedule))
    memory, largest = Memory(9), []
    for number, told in enumerate(ROUNDS, start=1):
        theta = one.theta_J
        gradient = np.zeros(6)
        for client, loss in enumerate(told["validation_loss"]):
            weight = told["validation_examples"][client] / sum(told["validation_examples"])
            drawn = one.draw(client)
            gradient[drawn] += weight * (loss - mean_loss(told)) / theta[drawn]
        largest.append(float(np.abs(gradient).max()))
        add_round(memory, number, told)
        one.answered(everybody(told))
        one.learn(memory, number)
        expected = math.sqrt(2 * math.log(6)) / divisor(largest)
        assert one.decisions["step"] == pytest.approx(expected)


def test_what_does_well_becomes_likely() -> None:
    one = policy()
    memory = Memory(50)
    for number in range(1, 31):
        drawn = [one.draw(client) for client in range(20)]
        told = {"validation_loss": [0.5 if j == 4 else 1.5 for j in drawn]}
        add_round(memory, number, told)
        one.answered(everybody(told))
        one.learn(memory, number)
    assert one.theta_J[4] > 0.9
    assert one.decisions["probabilities"][0]["learning_rate"] == 3.0
    assert "'epochs': 1" in one.decisions["reason"]


def test_draws_follow_the_probabilities_and_repeat_with_the_seed() -> None:
    one, again, other = policy(), policy(), policy(seed=4)
    for made in (one, again, other):
        learned(made, ROUNDS[:1])
    drawn = [one.draw(client) for client in range(-2000, 2000)]
    assert drawn == [again.draw(client) for client in range(-2000, 2000)]
    assert drawn != [other.draw(client) for client in range(-2000, 2000)]
    counts = Counter(drawn)
    for place, theta in enumerate(one.theta_J):
        assert counts[place] / 4000 == pytest.approx(theta, abs=0.03)
    before = list(drawn)
    learned(one, ROUNDS[1:2], first=2)
    assert [one.draw(client) for client in range(-2000, 2000)] != before
    assert one.advise(5) is one.choices[one.draw(5)]


def test_who_was_nobody_is_reckoned_by_what_it_drew_as_nobody() -> None:
    one, same = policy(), policy()
    told = ROUNDS[0]
    memory = Memory(9)
    add_round(memory, 1, told)
    one.answered({-1 - client: client for client in everybody(told)})
    one.learn(memory, 1)
    drawn = [same.draw(-1 - client) for client in everybody(told)]
    largest = one_round([1 / 6] * 6, drawn, told, mean_loss(told), math.sqrt(2 * math.log(6)))
    np.testing.assert_allclose(one.theta_J, largest)


def test_who_tells_nothing_counts_as_the_worst() -> None:
    told = {**ROUNDS[0], "validation_examples": [2] * 9}
    silent, worst = policy(), policy()
    memory = Memory(9)
    add_round(memory, 1, told)
    silent.answered({**everybody(told), 40: None})
    silent.learn(memory, 1)
    told = {
        "client_id": [*range(9), 40],
        "validation_loss": [*told["validation_loss"], max(told["validation_loss"])],
        "validation_examples": [2] * 10,
    }
    memory = Memory(9)
    add_round(memory, 1, told)
    worst.answered({client: client for client in told["client_id"]})
    worst.learn(memory, 1)
    np.testing.assert_allclose(silent.theta_J, worst.theta_J)


@pytest.mark.parametrize("schedule", ["aggressive", "adaptive"])
def test_where_all_draw_the_same_nothing_is_learned(schedule: Any) -> None:
    one = policy(replace(CONFIG, schedule=schedule))
    client = one.draw(0)
    same = [c for c in range(200) if one.draw(c) == client]
    told = {"client_id": same, "validation_loss": RNG.uniform(1, 2, len(same)).tolist()}
    memory = Memory(9)
    add_round(memory, 1, told)
    one.answered({c: c for c in same})
    one.learn(memory, 1)
    np.testing.assert_allclose(one.theta_J, 1 / 6)


def test_without_validation_data_nothing_is_learned() -> None:
    one = policy()
    learned(one, [{**ROUNDS[0], "validation_examples": [0] * 9}])
    np.testing.assert_allclose(one.theta_J, 1 / 6)
    assert not one.decisions


def test_one_liar_is_cut_and_named() -> None:
    told = {**ROUNDS[0], "validation_loss": [1.0] * 8 + [1e12]}
    one = policy()
    learned(one, [told])
    assert one.decisions["cut"] == [8]
    assert one.decisions["baseline"] < 10


def test_a_saved_policy_goes_on_bit_for_bit() -> None:
    whole, cut, other = policy(), policy(), policy()
    learned(whole, ROUNDS)
    learned(cut, ROUNDS[:2])
    other.restore(Memory(9), *cut.state())
    assert [other.draw(c) for c in range(50)] == [cut.draw(c) for c in range(50)]
    learned(other, ROUNDS[2:], first=3)
    np.testing.assert_array_equal(other.theta_J, whole.theta_J)
    assert other.decisions == whole.decisions
