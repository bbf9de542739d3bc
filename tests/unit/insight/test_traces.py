"""What clients tell of how wide their classes are: a plain loop, and what it keeps to itself."""

from dataclasses import replace

import numpy as np
import pytest
from payload_cases import CLASSES, COUNTS, LINE, TASK, cohort, one_of, payload, samples_of, told

from fedmoe.insight.payloads import Payloads


@pytest.mark.parametrize("fewest", [1, 2, 4])
@pytest.mark.parametrize("clip", [None, 2.0])
def test_it_is_a_loop_over_samples(fewest: int, clip: float | None) -> None:
    one, sources = payload("traces", min_count=fewest, clip=clip), cohort()
    sent = told(one, sources)["class_trace"]
    assert sent.shape == (len(COUNTS), CLASSES) and one.nbytes == sent[0].nbytes
    assert sent.any()
    for client in range(len(COUNTS)):
        for c in range(CLASSES):
            own = [x for x, y in samples_of(sources, client) if y == c]
            if clip is not None:
                own = [x * min(1.0, clip / float(np.linalg.norm(x))) for x in own]
            expected = 0.0
            if len(own) >= fewest:
                mean = sum(own) / len(own)
                expected = sum(float(((x - mean) ** 2).sum()) for x in own)
            np.testing.assert_allclose(sent[client, c], expected, rtol=1e-5, atol=1e-6)
    assert not one.implausible({"class_trace": sent}, np.array(COUNTS)).any()
    for client in range(len(COUNTS)):
        alone = told(one, one_of(sources, client))["class_trace"][0]
        np.testing.assert_allclose(alone, sent[client], rtol=1e-6, atol=1e-6)


def test_a_single_feature_takes_as_many_samples_as_squares_do() -> None:
    """Of two numbers, sum and distance give both away."""
    sources = cohort()
    narrow = replace(sources, x_CnD=sources.x_CnD[..., :1])
    one = payload("traces", replace(TASK, num_features=1), min_count=2, min_count_squares=4)
    sent = told(one, narrow)["class_trace"]
    for client in range(len(COUNTS)):
        count_O = np.bincount([int(y) for _, y in samples_of(sources, client)], minlength=CLASSES)
        np.testing.assert_array_equal(sent[client] > 0, count_O >= 4)


def test_what_no_squares_can_be_is_refused() -> None:
    one = payload("traces", clip=2.0)
    spread = np.zeros((3, CLASSES), np.float32)
    spread[0, 1], spread[1, 0], spread[2, :2] = -1, 4 * 5 + 1, (8, 11)
    wrong = one.implausible({"class_trace": spread}, np.array([5, 5, 5]))
    np.testing.assert_array_equal(wrong, [True, True, False])


def test_regression_has_no_classes() -> None:
    assert "traces" not in Payloads(replace(payload("traces").facts, task=LINE)).by_name
