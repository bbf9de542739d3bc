"""ARUBA against its formula as a loop over clients, and momentum against momentum itself."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from told import add_round

from fedmoe.insight import Memory
from fedmoe.insight.policies import Setting
from fedmoe.insight.policies.step_size import StepSize, echo
from fedmoe.schema import StepSizePolicyConfig

CONFIG = StepSizePolicyConfig(zeta=0.7, power=0.5, decay=0.8, per="federation", limit=1000.0)
SETTING = Setting(learning_rate=0.2, momentum=0.9)
RNG = np.random.default_rng(0)


def echo_of_one(steps: int, momentum: float) -> float:
    """How far momentum goes along a constant gradient of 1 at rate 1, by step."""
    velocity = place = 0.0
    for _ in range(steps):
        velocity = momentum * velocity + 1.0
        place += velocity
    return place / steps


def columns(clients: int) -> dict[str, Any]:
    steps = RNG.integers(1, 9, clients).tolist()
    way = [0.2 * s * echo_of_one(s, 0.9) for s in steps]
    return {
        "steps": steps,
        "distance": (np.array(way) * RNG.uniform(0.5, 1.0, clients)).tolist(),
        "mean_grad": RNG.uniform(0.5, 1.0, clients).tolist(),
        "std_grad": RNG.uniform(0.1, 0.3, clients).tolist(),
    }


ROUNDS = [columns(5), columns(3), columns(4)]


def policy(config: StepSizePolicyConfig = CONFIG, setting: Setting = SETTING) -> StepSize:
    made = StepSize(config)
    made.setting = setting
    return made


def learned(one: StepSize, rounds: list[dict[str, Any]]) -> Memory:
    memory = Memory(9)
    for number, told in enumerate(rounds, start=1):
        add_round(memory, number, told)
        one.learn(memory, number)
    return memory


def expected(
    rounds: list[dict[str, Any]], config: StepSizePolicyConfig = CONFIG, client: int | None = None
) -> float:
    """eta over the configured rate, client by client."""
    moved = steep = config.zeta**2
    number = 0
    for told in rounds:
        if client is None or client < len(told["steps"]):
            moved, steep = config.decay * moved, config.decay * steep
        for k in range(len(told["steps"])):
            if client not in (None, k):
                continue
            number += 1
            steps = told["steps"][k]
            unit = SETTING.learning_rate * echo_of_one(steps, SETTING.momentum)
            trust = config.zeta**2 / (number + 1) ** config.power
            moved += trust + (told["distance"][k] / unit) ** 2 / 2
            steep += trust + steps * (told["mean_grad"][k] ** 2 + told["std_grad"][k] ** 2)
    return math.sqrt(moved / steep)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_echo_of_a_gradient_is_that_of_momentum(momentum: float) -> None:
    found = echo(np.array([1.0, 2.0, 7.0, 40.0]), Setting(momentum=momentum))
    np.testing.assert_allclose(found, [echo_of_one(s, momentum) for s in (1, 2, 7, 40)])


def test_momentum_that_goes_on_echoes_without_end() -> None:
    found = echo(np.array([1.0, 7.0]), Setting(momentum=0.9, keeps_momentum=True))
    np.testing.assert_allclose(found, 10.0)


@pytest.mark.parametrize("decay", [1.0, 0.8])
@pytest.mark.parametrize("power", [0.0, 0.5, 2.0])
def test_the_factor_is_the_formula_client_by_client(power: float, decay: float) -> None:
    config = replace(CONFIG, power=power, decay=decay)
    one = policy(config)
    learned(one, ROUNDS)
    told = one.advise(0).numbers["learning_rate"]
    assert told == pytest.approx(expected(ROUNDS, config))
    assert one.advise(-7) is one.advise(3)
    assert one.decisions["learning_rate"] == told


def test_each_client_may_have_its_own_and_a_new_one_has_everybodys() -> None:
    one = policy(replace(CONFIG, per="client"))
    learned(one, ROUNDS)
    for client in range(5):
        told = one.advise(client).numbers["learning_rate"]
        assert told == pytest.approx(expected(ROUNDS, client=client))
    assert one.advise(77).numbers["learning_rate"] == pytest.approx(expected(ROUNDS))
    assert one.advise(-1).numbers["learning_rate"] == pytest.approx(expected(ROUNDS))


def test_gradients_that_agree_lengthen_steps_and_noise_shortens_them() -> None:
    """By sqrt(S / 2) and 1 / sqrt(2), but for the trust in the configured rate."""
    setting, steps = Setting(learning_rate=0.1), 8
    for distance, factor in (
        (0.1 * steps, math.sqrt(steps / 2)),
        (0.1 * math.sqrt(steps), 0.5**0.5),
    ):
        one = policy(replace(CONFIG, zeta=1e-6), setting)
        told = {"steps": [steps] * 3, "distance": [distance] * 3, "mean_grad": [1.0] * 3}
        learned(one, [{**told, "std_grad": [0.0] * 3}])
        assert one.advise(0).numbers["learning_rate"] == pytest.approx(factor)


def test_nothing_is_told_before_anything_is_known() -> None:
    one = policy()
    one.learn(Memory(3), 1)
    assert not one.advise(0).numbers and not one.decisions


def test_a_round_without_insights_changes_nothing() -> None:
    one = policy()
    memory = learned(one, ROUNDS[:1])
    before = one.advise(0).numbers
    one.learn(memory, 2)
    assert one.advise(0).numbers == before


def test_the_factor_stays_within_its_limit() -> None:
    one = policy(replace(CONFIG, limit=1.5))
    learned(one, [{**columns(4), "distance": [1e3] * 4}])
    assert one.advise(0).numbers["learning_rate"] == 1.5
    other = policy(replace(CONFIG, limit=1.5))
    learned(other, [{**columns(4), "distance": [0.0] * 4, "mean_grad": [50.0] * 4}])
    assert other.advise(0).numbers["learning_rate"] == pytest.approx(1 / 1.5)


@pytest.mark.parametrize("field", ["distance", "mean_grad", "std_grad", "steps"])
def test_one_liar_in_ten_does_not_decide_and_is_named(field: str) -> None:
    honest = columns(10)
    lying = {**honest, field: [*honest[field][:6], 1e12, *honest[field][7:]]}
    factors = []
    for told in (honest, lying):
        one = policy()
        learned(one, [told])
        factors.append(one.advise(0).numbers["learning_rate"])
    assert 1 / 2 < factors[1] / factors[0] < 2
    assert one.decisions["cut"] == [6]


@pytest.mark.parametrize("per", ["federation", "client"])
def test_a_saved_policy_goes_on_bit_for_bit(per: str) -> None:
    config = replace(CONFIG, per=per)  # type: ignore[arg-type]
    whole, cut, other = policy(config), policy(config), policy(config)
    learned(whole, ROUNDS)
    memory = learned(cut, ROUNDS[:2])
    other.restore(memory, *cut.state())
    assert [other.advise(c) for c in range(-1, 6)] == [cut.advise(c) for c in range(-1, 6)]
    add_round(memory, 3, ROUNDS[2])
    other.learn(memory, 3)
    assert [other.advise(c) for c in range(-1, 6)] == [whole.advise(c) for c in range(-1, 6)]
