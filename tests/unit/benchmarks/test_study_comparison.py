"""Who is ahead of whom, and which goals that meets, against plain loops."""

import math
import random
from collections.abc import Mapping

import pytest
from study_fakes import outcome

from benchmarks.study.comparison import Comparison, Result, Spread
from benchmarks.study.goals import verdicts
from benchmarks.study.methods import METHODS
from benchmarks.study.outcomes import Outcome
from benchmarks.study.reproduction import REFERENCE, Agreement
from benchmarks.study.runs import Cell, Plan
from benchmarks.study.sheets import (
    detail_sheet,
    family_sheet,
    percent,
    reproduction_sheet,
    standing_sheet,
    verdict_sheet,
)

SETTINGS = ("mixture", "clustered", "permuted", "mnist5k_iid")
NAMES = ("local", "fedavg", "ifca", "fedmoe", "fedmoe_untuned", "fedavg_long")


def comparison(
    means: Mapping[str, Mapping[str, float]], outcomes: Mapping[Cell, list[Outcome]] | None = None
) -> Comparison:
    """Methods at given accuracies in given settings, two seeds one point above and below."""
    plan = Plan(settings=tuple(means), methods=NAMES, seeds=(0, 1), tuning_seeds=(100,))
    results = {}
    for setting, row in means.items():
        for name in NAMES:
            mean = row.get(name, 0.1)
            both = [outcome(mean - 0.01), outcome(mean + 0.01)]
            own = (outcomes or {}).get((setting, name), both)
            words = ("training.learning_rate=0.5",)
            results[setting, name] = Result(outcomes=own, configuration=words)
    return Comparison(plan, results)


def test_lead_is_that_of_a_loop() -> None:
    draw = random.Random(1)
    cells = {("mixture", name): [outcome(draw.random()) for _ in range(5)] for name in NAMES}
    found = comparison({"mixture": {}}, cells).lead("mixture")
    assert found is not None
    means = {
        name: sum(one.last["personalised"].mean for one in cells["mixture", name]) / 5
        for name in NAMES
    }
    rival = max(("local", "fedavg", "ifca"), key=lambda name: means[name])
    differences = [
        ours.last["personalised"].mean - theirs.last["personalised"].mean
        for ours, theirs in zip(cells["mixture", "fedmoe"], cells["mixture", rival], strict=True)
    ]
    mean = sum(differences) / 5
    variance = sum((value - mean) ** 2 for value in differences) / 4
    assert found.rival == rival
    assert found.rival_mean == pytest.approx(means[rival])
    assert found.mean == pytest.approx(means["fedmoe"])
    assert found.ahead == pytest.approx(means["fedmoe"] - means[rival])
    assert found.error == pytest.approx(math.sqrt(variance / 5))


def test_controls_are_no_rivals() -> None:
    found = comparison({"mixture": {"ifca": 0.7, "fedavg_long": 0.9, "fedmoe_untuned": 0.95}})
    lead = found.lead("mixture")
    assert lead is not None
    assert lead.rival == "ifca"
    assert {METHODS[name].role for name in found.rivals()} == {"strategy"}


def test_a_failed_seed_is_no_mean() -> None:
    failed = [outcome(0.9), Outcome.failed("diverged", 1.0)]
    found = comparison({"mixture": {"ifca": 0.7}}, {("mixture", "fedavg"): failed})
    assert found.results["mixture", "fedavg"].accuracy is None
    lead = found.lead("mixture")
    assert lead is not None
    assert lead.rival == "ifca"
    assert "failed" in family_sheet(found, "synthetic").rows[1]
    assert "failed: diverged" in detail_sheet(found, "mixture").rows[1]
    none = comparison({"mixture": {}}, {("mixture", "fedmoe"): failed})
    assert none.lead("mixture") is None


def goals_of(found: Comparison, agreements: list[Agreement] | None = None) -> list[bool | None]:
    return [one.met for one in verdicts(found, agreements or [])]


def test_goals_met() -> None:
    alive = [outcome(0.96, alive=[0.3, 0.3, 0.3, 0.1], dead=1)] * 2
    means = {
        "mixture": {"fedmoe": 0.791, "ifca": 0.80}, "clustered": {"fedmoe": 0.95, "ifca": 0.94},
        "permuted": {"ifca": 0.95}, "mnist5k_iid": {"fedmoe": 0.5, "ifca": 0.9},
    }  # fmt: skip
    cells = {(setting, "fedmoe"): alive for setting in ("mixture", "clustered", "permuted")}
    found = comparison(means, {("permuted", "fedmoe"): alive})
    agreement = Agreement("mixture", "ifca", Spread(0.75, 0.03), Spread(0.82, 0.02))
    assert goals_of(found, [agreement]) == [True, True, True, True, True]
    assert goals_of(comparison(means, cells))[3:] == [True, None]


def test_goals_missed() -> None:
    means = {
        "mixture": {"fedmoe": 0.789, "ifca": 0.80}, "clustered": {"fedmoe": 0.95, "ifca": 0.94},
        "permuted": {"ifca": 0.96},
    }  # fmt: skip
    dying = [outcome(0.94, alive=[1.0, 0, 0, 0], dead=1), outcome(0.94, alive=[1, 0, 0, 0], dead=2)]
    found = comparison(means, {("permuted", "fedmoe"): dying})
    agreement = Agreement("mixture", "ifca", Spread(0.75, 0.03), Spread(0.83, 0.02))
    assert goals_of(found, [agreement]) == [False, False, False, False, False]
    told = verdicts(found, [agreement])
    assert told[0].found == "1 of 3; not in mixture -1.1, permuted -2.0"
    assert told[1].found == "1 of 3: clustered +1.0"
    assert told[2].found == "fedmoe 0.940, fedavg 0.100, local 0.100"
    assert told[3].found == "permuted 2"
    assert "ifca in mixture +2.2" in told[4].found


def test_goals_that_were_not_looked_at() -> None:
    assert goals_of(comparison({"mnist5k_iid": {}})) == [None, False, None, None, None]


def test_families_table_shows_the_best_that_is_no_control() -> None:
    means = {"mixture": {"ifca": 0.7, "fedmoe": 0.69, "fedavg_long": 0.9}}
    sheet = family_sheet(comparison({**means, "permuted": {}}), "synthetic")
    assert sheet.columns == ["", "mixture"]
    cells = {row[0]: row[1] for row in sheet.rows}
    assert cells["ifca"] == "**70.0 ± 1.4**"
    assert cells["fedmoe"] == "69.0 ± 1.4"
    assert cells["*fedavg_long*"] == "90.0 ± 1.4"


def test_standing() -> None:
    alive = [outcome(0.8, alive=[0.5, 0.5]), outcome(0.8, alive=[1.0, 0.0], dead=1)]
    found = comparison({"mixture": {"ifca": 0.7}}, {("mixture", "fedmoe"): alive})
    (row,) = standing_sheet(found, "fedmoe_untuned").rows
    assert row == ["mixture", "ifca", "70.0", "80.0", "+10.0 ± 1.0", "-60.0 ± 0.0", "1"]


def test_details_have_all_columns() -> None:
    sheet = detail_sheet(comparison({"mixture": {}}), "mixture")
    assert all(len(row) == len(sheet.columns) for row in sheet.rows)
    assert sheet.rows[0][-1] == "learning_rate=0.5"
    assert sheet.rows[0][7:9] == ["100", "200"]


def test_agreement_is_in_deviations() -> None:
    one = Agreement("mixture", "ifca", Spread(0.75, 0.03), Spread(0.80, 0.04))
    assert one.deviations == pytest.approx(1.0)
    assert one.published_deviations == pytest.approx(0.05 / 0.03)
    assert all(0.5 < s.mean < 1 and s.std > 0 for row in REFERENCE.values() for s in row.values())
    (row,) = reproduction_sheet([one], 20).rows
    assert row == ["mixture", "ifca", "75.0 ± 3.0", "80.0 ± 4.0", "+1.0", "+1.7"]


def test_percent() -> None:
    assert percent(Spread.of([0.5])) == "50.0"
    assert percent(Spread.of([0.4, 0.6])) == "50.0 ± 14.1"
    assert percent(None) == "failed"
    assert verdict_sheet("Goals", []).rows == []
