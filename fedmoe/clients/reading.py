"""What a message asks of a client: its records, read and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MessageType, RecordDict

from fedmoe.clients.requests import Settings
from fedmoe.data.federation import Ints
from fedmoe.insight import Guidance
from fedmoe.messages import words
from fedmoe.messages.arrays import signature_of


@dataclass(frozen=True)
class Asked:
    """What one content asks of some clients, n of them.

    Attributes:
        kind: Flower's message type.
        places: (n,) the clients' places among the messages.
        settings: what it sets.
        arrays: the model that was sent, if there was one.
        guidance: of a MetaLearner; it may be empty.
        extras: further arrays, by key.
    """

    kind: str
    places: Ints
    settings: Settings
    arrays: ArrayRecord | None
    guidance: Guidance
    extras: Mapping[str, ArrayRecord]

    def shape(self) -> tuple[object, ...]:
        """What is asked in equal shape can be answered as one cohort."""
        guided = tuple(sorted([*self.guidance.parts, *self.guidance.numbers]))
        extras = tuple((key, str(signature_of(r))) for key, r in self.extras.items())
        return self.kind, self.settings, self.arrays is None, guided, extras


def read_asked(content: RecordDict, kind: str, places: Ints, reads: Sequence[str]) -> Asked:
    """Turn a message's content into a request.

    Args:
        content: of the message.
        kind: Flower's message type.
        places: who was sent it.
        reads: keys of further array records that a train message may have.

    Raises:
        ValueError: the message is of an unknown kind or malformed.
    """
    arrays = _get_arrays(content, words.ARRAYS)
    if kind == MessageType.EVALUATE:
        extras = {words.EXPERTS: held} if (held := _experts(content)) else {}
        return Asked(kind, places, settings_of(content), arrays, Guidance(), extras)
    if kind != MessageType.TRAIN:
        raise ValueError(f"no handler for messages of type {kind!r}")
    found = [(key, _get_arrays(content, key)) for key in reads]
    found.append((words.EXPERTS, _experts(content)))
    extras = {key: record for key, record in found if record is not None}
    return Asked(kind, places, settings_of(content), arrays, words.get_guidance(content), extras)


def _experts(content: RecordDict) -> ArrayRecord | None:
    record = _get_arrays(content, words.EXPERTS)
    if record is None:
        return None
    if signature_of(record).keys() != {"index"}:
        raise ValueError(f"record {words.EXPERTS!r} must hold the array index")
    shape, dtype = signature_of(record)["index"]
    if len(shape) != 1 or dtype != "int64":
        raise ValueError(f"experts' index is {dtype} {shape}, expected int64 (M,)")
    return record


def _get_arrays(content: RecordDict, key: str) -> ArrayRecord | None:
    record = content.get(key)
    if record is not None and not isinstance(record, ArrayRecord):
        raise ValueError(f"record {key!r} must be an ArrayRecord")
    return record


def settings_of(content: RecordDict) -> Settings:
    """What a message sets.

    Raises:
        ValueError: a setting is not what it must be.
    """
    config = words.get_config(content)
    return Settings(
        round=int(_number(config, words.SERVER_ROUND, 0)),
        proximal_mu=_number(config, words.PROXIMAL_MU, 0.0),
        prior_strength=_strength(config),
        payloads=words.wanted_payloads(content),
    )


def _strength(config: ConfigRecord) -> float:
    value = _number(config, words.PRIOR_STRENGTH, 1.0)
    if not 0 < value < math.inf:
        raise ValueError(f"config {words.PRIOR_STRENGTH!r} must be above 0, got {value}")
    return value


def _number(config: ConfigRecord, key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"config {key!r} must be a number, got {value!r}")
    return float(value)
