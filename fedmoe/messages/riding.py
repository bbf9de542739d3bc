"""An evaluation that rides along with training: one message asks for both, one reply answers both.

The train message of round r + 1 holds, as a record, the settings of round r's evaluation. The model
is in it already; a client evaluates what it was sent, and only then trains. The reply holds the
records of both, those of the evaluation under keys of their own.
"""

from flwr.app import ConfigRecord, Error, Message, MessageType, RecordDict

from fedmoe.messages import words
from fedmoe.messages.seams import unchecked_records, with_content, with_error

READ = (words.ARRAYS, words.EXPERTS)  # what clients read of an evaluation besides its settings
_PREFIX = "evaluation/"  # of the keys of its records in the reply


def evaluation_in(content: RecordDict) -> RecordDict | None:
    """The content of the evaluation that a train message asks for; `None` if it asks for none."""
    if words.EVALUATION not in content:
        return None
    records = {key: content[key] for key in READ if key in content}
    return unchecked_records({**records, words.CONFIG: content[words.EVALUATION]})


def joined(trained: Message, evaluated: Message) -> Message:
    """One reply for two; an error only where both are."""
    if trained.has_error() and evaluated.has_error():
        return trained
    both = ((MessageType.TRAIN, trained), (MessageType.EVALUATE, evaluated))
    failed = {kind: one.error.reason or "" for kind, one in both if one.has_error()}
    records = {} if trained.has_error() else dict(trained.content)
    if evaluated.has_content():
        records |= {f"{_PREFIX}{key}": record for key, record in evaluated.content.items()}
    if failed:
        records[words.FAILED] = ConfigRecord(dict(failed))
    return with_content(trained, unchecked_records(records))


def parted(reply: Message) -> tuple[Message, Message]:
    """The reply to the training and that to the evaluation: undoes `joined`."""
    if reply.has_error():
        return reply, reply
    own: RecordDict
    trained, evaluated = RecordDict(), RecordDict()
    for key, record in reply.content.items():
        own = evaluated if key.startswith(_PREFIX) else trained
        if key != words.FAILED:
            own[key.removeprefix(_PREFIX)] = record
    both = ((MessageType.TRAIN, trained), (MessageType.EVALUATE, evaluated))
    first, second = (
        with_content(reply, content)
        if (reason := _failure(reply, kind)) is None
        else with_error(reply, Error(words.CLIENT_FAILED, reason))
        for kind, content in both
    )
    return first, second


def has_trained(reply: Message) -> bool:
    """Whether a reply to training is none that says that it failed."""
    return not reply.has_error() and _failure(reply, MessageType.TRAIN) is None


def _failure(reply: Message, kind: str) -> str | None:
    """Why one of the two failed, if the client says that it did."""
    record = reply.content.get(words.FAILED)
    reason = record.get(kind) if isinstance(record, ConfigRecord) else None
    return reason if isinstance(reason, str) else None
