import json
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Message, MessageType, MetricRecord, RecordDict

from fedmoe.messages import words
from fedmoe.messages.arrays import Records, Stack, to_record
from fedmoe.messages.broadcast import Broadcast
from fedmoe.messages.parts import Part
from fedmoe.messages.replies import Replies
from fedmoe.messages.seams import ensure_task_identity
from fedmoe.models.router_metrics import RouterKind, router_metrics
from fedmoe.routing_scores import FederationRouting, federation_routing, write_clients

KIND = RouterKind(num_experts=2, num_classes=3, has_classes=True, has_answers=True)
COUNTS = [4, 0, 2]


@pytest.fixture(autouse=True)
def _identity() -> None:
    ensure_task_identity()


def sums() -> torch.Tensor:
    sums_CJ = torch.rand(3, KIND.size, generator=torch.Generator().manual_seed(0))
    sums_CJ[1] = 0.0
    return sums_CJ


def make_part(rows: list[int]) -> Part:
    records: Records = {
        words.METRICS: {words.NUM_EXAMPLES: np.array([COUNTS[row] for row in rows])},
        words.ROUTING: Stack({words.SUMS: sums()[rows]}),
    }
    return Part(np.array(rows), records)


def request() -> Broadcast:
    return Broadcast([2, 3, 4], MessageType.EVALUATE, {})


def found_in(replies: Replies) -> FederationRouting:
    found = federation_routing(7, KIND, replies)
    assert found is not None
    return found


def test_clients_are_put_together_however_their_replies_came() -> None:
    sent = request()
    whole = found_in(Replies(sent, [make_part([0, 1, 2])], {}))
    assert whole.metrics == router_metrics(KIND, KIND.split(sums().numpy()), np.array(COUNTS))
    assert whole.nodes == [2, 3, 4]
    assert whole.as_json() == {"round": 7, **whole.metrics.as_json()}
    content = RecordDict(
        {
            words.METRICS: MetricRecord({words.NUM_EXAMPLES: COUNTS[1]}),
            words.ROUTING: to_record({words.SUMS: sums()[1]}),
        }
    )
    mixed = Replies(sent, [make_part([2, 0])], {1: Message(content, reply_to=sent[1])})
    assert found_in(mixed).metrics == whole.metrics
    listed = federation_routing(7, KIND, list(Replies(sent, [make_part([0, 1, 2])], {})))
    assert listed is not None
    assert listed.metrics == whole.metrics


def test_nothing_is_told_where_a_reply_has_no_sums_or_nobody_has_samples() -> None:
    sent, part = request(), make_part([0, 2])
    assert federation_routing(1, KIND, []) is None
    bare = Part(np.array([1]), {words.METRICS: {words.NUM_EXAMPLES: np.array([1])}})
    assert federation_routing(1, KIND, Replies(sent, [part, bare], {})) is None
    plain = RecordDict({words.METRICS: MetricRecord({words.NUM_EXAMPLES: 1})})
    message = Message(plain, reply_to=sent[1])
    assert federation_routing(1, KIND, Replies(sent, [part], {1: message})) is None
    empty = make_part([0, 1, 2])
    empty.numbers(words.METRICS)[words.NUM_EXAMPLES][:] = 0
    assert federation_routing(1, KIND, Replies(sent, [empty], {})) is None


def test_each_clients_shares_are_written_down(tmp_path: Path) -> None:
    routing = found_in(Replies(request(), [make_part([0, 1, 2])], {}))
    write_clients(tmp_path / "a.json", routing, lambda node: 4 - node)
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["round"], written["clients"]) == (7, [0, 1, 2])
    assert written["shares"][1] == [None, None]
    weights = KIND.split(sums().numpy()).class_load_COE.sum(axis=1)
    for client, row in ((0, 2), (2, 0)):
        expected = (weights[row] / weights[row].sum()).round(4).tolist()
        assert written["shares"][client] == expected
