"""Contracts on Flower's private parts; a new Flower version that breaks one fails here."""

import subprocess
import sys

from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.proto.message_pb2 import Message as ProtoMessage

from fedmoe.messages import seams


def make_message() -> Message:
    seams.ensure_task_identity()
    return Message(RecordDict({"config": ConfigRecord({"a": 1})}), 7, MessageType.TRAIN)


def test_messages_can_be_made_in_a_fresh_process() -> None:
    code = (
        "from flwr.app import Message, RecordDict\n"
        "from fedmoe.messages.seams import ensure_task_identity\n"
        "try:\n"
        "    Message(RecordDict(), 7, 'train')\n"
        "except RuntimeError:\n"
        "    ensure_task_identity()\n"
        "    print(Message(RecordDict(), 7, 'train').metadata.src_node_id)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str(seams.SERVER_NODE_ID)


def test_message_id_is_carried_to_the_reply() -> None:
    message = make_message()
    seams.set_message_id(message, "12")
    reply = Message(RecordDict(), reply_to=message)
    assert message.metadata.message_id == "12"
    assert reply.metadata.reply_to_message_id == "12"
    assert (reply.metadata.src_node_id, reply.metadata.dst_node_id) == (7, seams.SERVER_NODE_ID)


def test_content_can_be_replaced_under_the_same_metadata() -> None:
    message = make_message()
    other = seams.with_content(message, RecordDict())
    assert other.metadata is message.metadata
    assert not other.content and message.content


def test_an_error_can_stand_in_for_the_content_under_the_same_metadata() -> None:
    message = make_message()
    seams.set_message_id(message, "12")
    failed = seams.with_error(message, Error(2, "why"))
    assert failed.has_error() and not failed.has_content() and failed.error.reason == "why"
    assert failed.metadata is message.metadata and message.has_content()


def test_wire_bytes_are_what_flower_parses() -> None:
    message = make_message()
    parsed = ProtoMessage.FromString(seams.wire_bytes(message))
    assert parsed.metadata.dst_node_id == 7


def test_run_information_is_empty_but_numbered() -> None:
    assert seams.empty_run(3).run_id == 3


def test_unchecked_records_equal_checked_ones() -> None:
    config, metrics = ConfigRecord({"a": 1}), MetricRecord({"loss": 0.5, "num-examples": 3})
    unchecked = seams.unchecked_records({"config": config, "metrics": metrics})
    assert unchecked == RecordDict({"config": config, "metrics": metrics})
    assert seams.unchecked_metrics({"loss": 0.5, "num-examples": 3}) == metrics
    unchecked["config"] = ConfigRecord({"b": 2})  # and they can be changed like others
    assert unchecked.config_records["config"] == {"b": 2}
