"""A tenth of the clients lies in each field in turn: runs go on, honest clients lose little."""

from pathlib import Path

import numpy as np
import pytest
from federation_runs import QUIET

from benchmarks.lies import LIES, LyingGrid, lied
from fedmoe import Server
from fedmoe.insight.insight import SCALARS
from fedmoe.insight.payloads import PAYLOADS
from fedmoe.messages import words
from fedmoe.strategies import Insights

LIARS = [3]
USUAL = [
    *QUIET,
    "data.num_clients=12",
    "rounds=3",
    "evaluate_every=3",
    "tracking.checkpoint_every=0",
]
CLASSES = [
    *USUAL, "data=synthetic_classes", "data.samples_per_client=30", "data.num_features=4",
    "data.num_classes=3", "partition=natural", "strategy=fedmoe", "strategy.warm_up_rounds=1",
    "model=linear", "meta_learner=[prototypes,expert_assignment,step_size,hyperparameters]",
    "insight.sketch_size=4", "insight.public_samples=5", "insight.every=1",
]  # fmt: skip
LINE = [
    *USUAL, "data=synthetic_linear", "data.samples_per_client=30", "data.num_features=3",
    "partition=natural", "model=linear", "strategy=insight", "training.learning_rate=0.02",
]  # fmt: skip


# Of a payload that follows from guidance, there is none before somebody gives it.
NAMES = [name for name, kind in PAYLOADS.items() if kind.made_by is None]
TOLD = f"insight.payloads=[{','.join(NAMES)}]"


def arrays_of(overrides: list[str]) -> list[str]:
    """All arrays of all payloads that there are."""
    strategy = Server(overrides=overrides).strategy
    assert isinstance(strategy, Insights)
    payloads = strategy.exchange.payloads.by_name
    return [array for name in NAMES if name in payloads for array in payloads[name].shapes]


# Who speaks first for a client that nobody knows is believed (see docs/insight-poisoning.md).
NUMBERS = [name for name in SCALARS if name != "client_id"]
FIELDS = [
    *((CLASSES, words.INSIGHT, name) for name in NUMBERS),
    *((CLASSES, words.STRENGTHS, name) for name in ("loss", "examples")),
    *((words_, words.PAYLOAD, name) for words_ in (CLASSES, LINE) for name in arrays_of(words_)),
]


def score_of(overrides: list[str]) -> str:
    return "personalised-accuracy" if overrides is CLASSES else "personalised-mse"


@pytest.mark.parametrize(("overrides", "key", "field"), FIELDS, ids=lambda x: str(x)[:24])
def test_no_lie_ends_a_run_or_has_an_honest_client_refused(
    overrides: list[str], key: str, field: str, tmp_path: Path
) -> None:
    for lie in ("x 10^4", "sign", "noise"):
        path = tmp_path / lie.replace(" ", "")
        told = [*overrides, TOLD]
        found = lied(path, told, score_of(overrides), LIARS, key, field, LIES[lie])
        assert (found.status, found.refused) == ("completed", 0)
        assert np.isfinite(found.score)


NAMED = [
    *((CLASSES, words.INSIGHT, name, "x 10^4") for name in NUMBERS if name != "guidance_parts"),
    (CLASSES, words.PAYLOAD, "prototype_sum", "x 10^4"),
    (CLASSES, words.PAYLOAD, "prototype_count", "x 10"),
    (CLASSES, words.PAYLOAD, "class_trace", "x 10^4"),
    (LINE, words.PAYLOAD, "statistics_xx", "/ 10"),
    (LINE, words.PAYLOAD, "statistics_xy", "x 10"),
    (LINE, words.PAYLOAD, "statistics_yy", "x 10"),
]


@pytest.mark.parametrize(("overrides", "key", "field", "lie"), NAMED, ids=lambda x: str(x)[:24])
def test_gross_lies_are_named(
    overrides: list[str], key: str, field: str, lie: str, tmp_path: Path
) -> None:
    found = lied(tmp_path / "run", overrides, score_of(overrides), LIARS, key, field, LIES[lie])
    assert (found.named, found.refused) == (1, 0)


def test_the_truth_names_nobody(tmp_path: Path) -> None:
    for overrides in (CLASSES, LINE):
        path = tmp_path / score_of(overrides)
        found = lied(path, [*overrides, TOLD], score_of(overrides), LIARS)
        assert (found.named, found.accused, found.refused) == (0, 0, 0)


def test_a_lie_is_told_by_the_liars_alone() -> None:
    server = Server(overrides=LINE)
    grid = LyingGrid(server.experiment, LIARS, words.INSIGHT, "distance", LIES["x 10"])
    told = np.arange(1.0, 13.0)
    np.testing.assert_array_equal(
        grid.lies_of(told, np.array([3])), np.where(np.arange(12) == 3, 10 * told, told)
    )
