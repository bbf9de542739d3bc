"""Names of records and keys in messages, and how insights and guidance are put into records.

`arrays`, `config`, `metrics`, `num-examples`, `server-round` and `proximal-mu` are Flower's own
conventions, so its stock strategies and ours understand the same clients.
"""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedmoe.insight import Guidance, Insight
from fedmoe.insight.insight import SCALARS, SCHEMA_VERSION, WHOLE, from_fields
from fedmoe.messages.arrays import Numbers, Records, Stack, to_record

ARRAYS = "arrays"
CONFIG = "config"
METRICS = "metrics"
INSIGHT = "insight"
PAYLOAD = "payload"
GUIDANCE = "guidance"
LOAD = "expert-load"  # how the experts are used: shares of samples, and mean probabilities
EXPERTS = "experts"  # which experts of a mixture the arrays hold
STRENGTHS = "strengths"  # validation losses by strength of a client's prior
PROTOTYPES = "prototypes"
ROUTING = "routing"
SUMS = "sums"

NUM_EXAMPLES = "num-examples"
PARTITION_ID = "partition-id"
SERVER_ROUND = "server-round"
PROXIMAL_MU = "proximal-mu"
LOSS = "loss"
PRIOR_STRENGTH = "prior-strength"
WANTED_PAYLOADS = "insight-payloads"  # names joined by commas; its presence asks for an insight
PROTOTYPE_MIN_COUNT = "prototype-min-count"
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


def guidance_record(guidance: Guidance) -> ArrayRecord | None:
    """Guidance as arrays; `None` if it changes nothing."""
    arrays = guidance.arrays()
    return to_record(arrays) if arrays else None


def get_guidance(content: RecordDict) -> Guidance | None:
    """Read a message's guidance, or `None` if it has none.

    Raises:
        ValueError: an unknown part, or one that is not finite.
    """
    record = content.get(GUIDANCE)
    if not isinstance(record, ArrayRecord):
        return None
    return Guidance.from_arrays({name: array.numpy() for name, array in record.items()})


def get_config(content: RecordDict) -> ConfigRecord:
    """A message's settings, empty if it has none."""
    record = content.get(CONFIG)
    return record if isinstance(record, ConfigRecord) else ConfigRecord()
