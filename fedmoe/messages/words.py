"""Names of records and keys in messages, and how insights and guidance are put into records.

`arrays`, `config`, `metrics`, `num-examples`, `server-round` and `proximal-mu` are Flower's own
conventions, so its stock strategies and ours understand the same clients.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedmoe.insight import Guidance, Insight
from fedmoe.insight.insight import SCALARS, SCHEMA_VERSION, WHOLE, from_fields
from fedmoe.messages.arrays import Numbers, Records, Stack, to_record
from fedmoe.messages.seams import RecordType

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
INSIGHT = "insight"
PAYLOAD = "payload"
GUIDANCE = "guidance"  # parts of it, arrays that a client keeps
ADVICE = "advice"  # numbers of it, which hold for one round
LOAD = "expert-load"  # how the experts are used: shares of samples, and mean probabilities
EXPERTS = "experts"  # which experts of a mixture the arrays hold
STRENGTHS = "strengths"  # validation losses by strength of a client's prior
PROTOTYPES = "prototypes"
ROUTING = "routing"
SUMS = "sums"
EVALUATION = "evaluation"  # in a train message: settings of an evaluation to be made before it
FAILED = "failed"  # in a reply to both: why one of the two failed, by message type

NUM_EXAMPLES = "num-examples"
PARTITION_ID = "partition-id"
STATE_ROUND = "state-round"  # of the private state that a client has; 0 for none
FAREWELL = "farewell"  # in a query: the run is over
OFFERED = "offered"  # in a query: a number for a client that has none
CLIENT_FAILED = 2  # Flower's code of an error: the client app raised
STRANGER = 1001  # code of an error: this process has not been asked which client it is
SERVER_ROUND = "server-round"
PROXIMAL_MU = "proximal-mu"
LOSS = "loss"
PRIOR_STRENGTH = "prior-strength"
PAYLOADS = "payloads"  # names joined by commas, in a record `insight`, which asks for one
_VERSION = "schema_version"


def insight_numbers(numbers: Numbers) -> Numbers:
    """The numbers of many clients' insights as they travel: with the schema's version."""
    count = len(numbers["client_id"])
    return {_VERSION: np.full(count, SCHEMA_VERSION), **numbers}


def get_insight(content: RecordDict) -> Insight:
    """Read a reply's insight.

    Raises:
        ValueError: there is none, its version is unknown, or a field is missing or malformed.
    """
    record, payload = content.get(INSIGHT), content.get(PAYLOAD, ArrayRecord())
    if not isinstance(record, MetricRecord) or not isinstance(payload, ArrayRecord):
        raise ValueError("the reply has no insight")
    scalars = dict(record)
    version = scalars.pop(_VERSION, None)
    if version != SCHEMA_VERSION:
        raise ValueError(f"insight schema version {version} is unknown, expected {SCHEMA_VERSION}")
    return from_fields(scalars, {name: array.numpy() for name, array in payload.items()})


def get_insights(records: Records) -> Numbers | None:
    """The numbers of stacked insights, (P,) by name of the field.

    Returns:
        `None` if they are not as `get_insight` would have them.
    """
    record = records.get(INSIGHT)
    if record is None or isinstance(record, Stack):
        return None
    numbers = dict(record)
    version = numbers.pop(_VERSION, np.zeros(1))
    if (version != SCHEMA_VERSION).any() or numbers.keys() != set(SCALARS):
        return None
    return numbers if all(numbers[name].dtype.kind == "i" for name in WHOLE) else None


def insight_request(payloads: Sequence[str]) -> ConfigRecord:
    """Ask a client for an insight with some payloads."""
    return ConfigRecord({PAYLOADS: ",".join(payloads)})


def wanted_payloads(content: RecordDict) -> tuple[str, ...] | None:
    """Which payloads a message asks for; `None` if it asks for no insight.

    Raises:
        ValueError: the record that asks is not as it must be.
    """
    record = content.get(INSIGHT)
    if record is None:
        return None
    names = record.get(PAYLOADS) if isinstance(record, ConfigRecord) else None
    if not isinstance(names, str):
        raise ValueError(f"record {INSIGHT!r} must hold {PAYLOADS!r}, one text")
    return tuple(filter(None, names.split(",")))


def guidance_records(
    parts: Mapping[str, NDArray[Any]], numbers: Mapping[str, float]
) -> dict[str, RecordType]:
    """Guidance as it travels; nothing if it changes nothing."""
    records: dict[str, RecordType] = {}
    if parts:
        records[GUIDANCE] = to_record(parts)
    if numbers:
        records[ADVICE] = ConfigRecord(dict(numbers))
    return records


def get_guidance(content: RecordDict) -> Guidance:
    """Read a message's guidance, which may be empty; whether it fits is to be checked.

    Raises:
        ValueError: something that is no array, or no number.
    """
    arrays, numbers = content.get(GUIDANCE, ArrayRecord()), content.get(ADVICE, ConfigRecord())
    if not isinstance(arrays, ArrayRecord) or not isinstance(numbers, ConfigRecord):
        raise ValueError("guidance must be arrays and numbers")
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"guidance {name}={value!r}: must be a number")
    parts = {name: array.numpy() for name, array in arrays.items()}
    return Guidance(parts, {name: float(value) for name, value in numbers.items()})  # type: ignore[arg-type]


def get_config(content: RecordDict) -> ConfigRecord:
    """A message's settings, empty if it has none."""
    record = content.get(CONFIG)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()
