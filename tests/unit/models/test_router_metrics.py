# The server's numbers against loops over clients, classes and experts.
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedmoe.models.router_metrics import (
    TOTALS,
    ClientSums,
    RouterKind,
    RouterMetrics,
    client_shares,
    router_metrics,
)


def make_kind(classes: int, experts: int, *, has_answers: bool = True) -> RouterKind:
    return RouterKind(
        num_experts=experts, num_classes=classes, has_classes=classes > 1, has_answers=has_answers
    )


def make_sums(
    clients: int, classes: int, experts: int, seed: int, dead: int = 0, empty: int = 0
) -> ClientSums:
    """Random sums; the last `dead` experts answer nothing, the last `empty` clients have none."""
    rng = np.random.default_rng(seed)
    load = rng.integers(0, 9, (clients, experts)).astype(float)
    class_load = rng.gamma(0.5, 2.0, (clients, classes, experts))
    class_load[rng.random(class_load.shape) < 0.3] = 0.0
    totals = rng.random((clients, len(TOTALS)))
    for column in (load, class_load):
        column[..., experts - dead :] = 0.0
    for values in (load, class_load, totals):
        values[clients - empty :] = 0.0
    return ClientSums(load, totals, class_load)


def entropy(shares: Sequence[float]) -> float:
    return -sum(p * math.log(p) for p in shares if p > 0)


def plain_shares(values: Sequence[float]) -> list[float]:
    return [value / sum(values) for value in values]


def plain_information(table: NDArray[np.float64]) -> float:
    """Mutual information of the rows and columns of a table, term by term."""
    total, found = table.sum(), 0.0
    for row in range(table.shape[0]):
        for column in range(table.shape[1]):
            p = table[row, column] / total
            if p > 0:
                by_row, by_column = table[row].sum() / total, table[:, column].sum() / total
                found += p * math.log(p / (by_row * by_column))
    return found


def plain_drift(weight_COE: NDArray[np.float64]) -> float:
    """Each expert's Jensen-Shannon divergence over clients, from its definition."""
    clients, classes, experts = weight_COE.shape
    found = 0.0
    for e in range(experts):
        used = [c for c in range(clients) if weight_COE[c, :, e].sum() > 0]
        own = [plain_shares(weight_COE[c, :, e].tolist()) for c in used]
        trust = plain_shares([weight_COE[c, :, e].sum() for c in used]) if used else []
        middle = [sum(t * h[o] for t, h in zip(trust, own, strict=True)) for o in range(classes)]
        divergence = entropy(middle) - sum(t * entropy(h) for t, h in zip(trust, own, strict=True))
        found += weight_COE[:, :, e].sum() / weight_COE.sum() * divergence
    return found


def check(found: RouterMetrics, sums: ClientSums, counts: list[int], has_answers: bool) -> None:
    samples = sum(counts)
    total = {name: sum(sums.totals_CT[:, place].tolist()) for place, name in enumerate(TOTALS)}
    experts = sums.load_CE.shape[1]
    load = plain_shares([sums.load_CE[:, e].sum() for e in range(experts)])
    weight = [sums.class_load_COE[:, :, e].sum() for e in range(experts)]
    importance = plain_shares(weight)
    expected = {
        "load": load,
        "importance": importance,
        "load_entropy": entropy(load) / math.log(experts) if experts > 1 else 1.0,
        "importance_entropy": entropy(importance) / math.log(experts) if experts > 1 else 1.0,
        "max_violation": (max(load) - 1 / experts) / (1 / experts),
        "dead_experts": sum(share < 0.1 / experts for share in importance),
        "drop_rate": (samples - total["answered"]) / samples,
        "gate_entropy": total["gate_entropy"] / samples / math.log(max(experts, 2)),
        "client_information": plain_information(sums.class_load_COE.sum(axis=1)),
        "churn": total["changed"] / total["compared"],
        "similarity": None,
        "necessity": None,
        "samples": samples,
    }
    if has_answers:
        expected["necessity"] = (total["random_errors"] - total["errors"]) / samples
        if experts > 1:
            # E of the ordered pairs are an expert with itself.
            expected["similarity"] = (total["similarity"] / samples - experts) / (
                experts * (experts - 1)
            )
    several = sums.class_load_COE.shape[1] > 1
    expected["class_information"] = (
        plain_information(sums.class_load_COE.sum(axis=0)) if several else None
    )
    expected["drift"] = plain_drift(sums.class_load_COE) if several else None
    assert found.as_json().keys() == expected.keys()
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-9), name


@settings(deadline=None, max_examples=60)
@given(
    clients=st.integers(1, 6),
    classes=st.integers(1, 5),
    experts=st.integers(1, 5),
    seed=st.integers(0, 9999),
    data=st.data(),
)
def test_each_number_is_its_formula(
    clients: int, classes: int, experts: int, seed: int, data: st.DataObject
) -> None:
    dead = data.draw(st.integers(0, experts - 1))
    empty = data.draw(st.integers(0, clients - 1))
    sums = make_sums(clients, classes, experts, seed, dead, empty)
    sums.load_CE[0, 0], sums.class_load_COE[0, 0, 0] = 1.0, 1.0  # somebody answered
    counts = [3 + client for client in range(clients - empty)] + [0] * empty
    has_answers = data.draw(st.booleans())
    kind = make_kind(classes, experts, has_answers=has_answers)
    found = router_metrics(kind, sums, np.array(counts))
    assert found is not None
    check(found, sums, counts, has_answers)


def one_table(class_load_COE: NDArray[np.float64]) -> RouterMetrics:
    """Nothing but mixing weights, and slots where there are any."""
    clients, classes, experts = class_load_COE.shape
    totals = np.zeros((clients, len(TOTALS)))
    sums = ClientSums(class_load_COE.sum(axis=1), totals, class_load_COE)
    found = router_metrics(make_kind(classes, experts), sums, np.full(clients, 8))
    assert found is not None
    return found


def test_an_even_router_and_one_that_has_collapsed() -> None:
    even = one_table(np.ones((3, 2, 4)))
    assert even.load == even.importance == [0.25] * 4
    assert even.load_entropy == pytest.approx(1.0)
    assert even.max_violation == pytest.approx(0.0)
    assert even.dead_experts == 0
    assert even.client_information == pytest.approx(0.0, abs=1e-12)
    collapsed = np.zeros((3, 2, 4))
    collapsed[:, :, 2] = 1.0
    one = one_table(collapsed)
    assert one.load == [0.0, 0.0, 1.0, 0.0]
    assert str(one.load_entropy) == str(one.importance_entropy) == "0.0"  # and not -0.0
    assert one.max_violation == pytest.approx(3.0)
    assert one.dead_experts == 3


def test_information_is_at_most_the_entropy_of_the_experts() -> None:
    # Each client its own expert, whatever the class.
    by_client = np.zeros((3, 2, 3))
    for client in range(3):
        by_client[client, :, client] = 1.0
    found = one_table(by_client)
    assert found.client_information == pytest.approx(math.log(3))
    assert found.class_information == pytest.approx(0.0, abs=1e-12)
    assert found.drift == pytest.approx(0.0, abs=1e-12)
    # Each class its own expert, whatever the client.
    by_class = np.zeros((2, 3, 3))
    for label in range(3):
        by_class[:, label, label] = 1.0
    found = one_table(by_class)
    assert found.class_information == pytest.approx(math.log(3))
    assert found.client_information == pytest.approx(0.0, abs=1e-12)


def test_an_expert_that_sees_other_classes_at_each_client_drifts() -> None:
    weight = np.zeros((2, 2, 3))
    weight[0, 0, 0] = weight[1, 1, 0] = 1.0  # expert 0: class 0 here, class 1 there
    weight[:, :, 1] = 0.5  # expert 1: the same at both
    found = one_table(weight)
    assert found.drift == pytest.approx(math.log(2) * 2 / 4)


@pytest.mark.parametrize(("share", "dead"), [(0.024, 1), (0.026, 0)])
def test_an_expert_is_dead_below_a_tenth_of_its_even_share(share: float, dead: int) -> None:
    weight = np.array([[[share, 0.3, 0.3, 0.4 - share]]])
    assert one_table(weight).dead_experts == dead


def test_nobody_has_samples_or_nobody_answers() -> None:
    nothing, kind = make_sums(2, 2, 3, seed=0, dead=3, empty=2), make_kind(2, 3, has_answers=False)
    assert router_metrics(kind, nothing, np.array([0, 0])) is None
    found = router_metrics(kind, nothing, np.array([3, 1]))
    assert found is not None
    assert found.drop_rate == 1.0
    unknown = ("load", "importance", "load_entropy", "importance_entropy", "max_violation",
               "dead_experts", "client_information", "class_information", "churn", "drift",
               "similarity", "necessity")  # fmt: skip
    assert all(getattr(found, name) is None for name in unknown)


def test_rounding_does_not_make_information_negative() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        weight = rng.random((7, 1, 1)) * rng.random((1, 5, 1)) * rng.random((1, 1, 4))
        found = one_table(weight)
        assert found.client_information is not None
        assert found.drift is not None
        assert 0.0 <= found.client_information < 1e-12
        assert 0.0 <= found.drift < 1e-12


def test_each_client_has_its_own_shares() -> None:
    sums = make_sums(3, 2, 4, seed=1, empty=1)
    shares = client_shares(sums)
    for client in range(2):
        weights = [sums.class_load_COE[client, :, e].sum() for e in range(4)]
        assert shares[client].tolist() == pytest.approx(plain_shares(weights))
    assert np.isnan(shares[2]).all()


def test_what_travels_is_split_as_it_was_put_together() -> None:
    kind = make_kind(classes=2, experts=3)
    assert kind.size == 3 + 6 + len(TOTALS)
    sums = kind.split(np.arange(2 * kind.size, dtype=np.float32).reshape(2, -1))
    assert sums.load_CE[1].tolist() == [16.0, 17.0, 18.0]
    assert sums.totals_CT[0].tolist() == list(range(3, 10))
    assert sums.class_load_COE[0].tolist() == [[10.0, 11.0, 12.0], [13.0, 14.0, 15.0]]
    assert sums.totals_CT.dtype == np.float64
