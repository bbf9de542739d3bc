"""What one reply must satisfy, as a message: the check that decides."""

import math

from flwr.app import ArrayRecord, Message, MessageType, MetricRecord
from flwr.serverapp.strategy import Strategy

from fedmoe.errors import ReplyError
from fedmoe.guard.routing import RoutingCheck
from fedmoe.messages import words
from fedmoe.messages.array_checks import check_arrays
from fedmoe.messages.arrays import Signature, signature_of, tensors_of
from fedmoe.messages.sizes import content_bytes
from fedmoe.schema import RuntimeBase

_REASON_LENGTH = 300


class MessageCheck:
    """Checks keys, shapes, dtypes, finiteness, counts and bytes of one phase's replies.

    Attributes:
        config: the limits.
        own_check: the strategy's `check_reply`, or `None`.
        own_signature: the strategy's `reply_signature`, or `None` if arrays come back as sent.
        routing: what the clients' routers are judged by, or `None` if they have none.
    """

    def __init__(
        self, config: RuntimeBase, strategy: Strategy | None, routing: RoutingCheck | None = None
    ) -> None:
        self.config, self.routing = config, routing
        self.own_check = getattr(strategy, "check_reply", None)
        self.own_signature = getattr(strategy, "reply_signature", None)
        self._known: dict[int, Signature] = {}

    def __call__(self, reply: Message, request: Message) -> int:
        """The reply's bytes.

        Raises:
            ReplyError: says what is wrong; the strategy's own check raises `ValueError`.
        """
        if reply.has_error():
            raise ReplyError(reply.error.reason or f"error code {reply.error.code}")
        content = reply.content
        size = content_bytes(content)
        if size > self.config.max_reply_bytes:
            raise ReplyError(f"{size} bytes, at most {self.config.max_reply_bytes} are allowed")
        training = request.metadata.message_type == MessageType.TRAIN
        self._check_counts(content.get(words.METRICS), least=1 if training else 0)
        sent = request.content.get(words.ARRAYS) if training else None
        asked = isinstance(sent, ArrayRecord)
        if asked and not isinstance(content.get(words.ARRAYS), ArrayRecord):
            raise ReplyError("the reply has no arrays")
        for key, record in content.items():
            if key == words.ROUTING and self.routing and not isinstance(record, ArrayRecord):
                raise ReplyError(f"{key} must be arrays")
            if isinstance(record, MetricRecord):
                _check_finite(record)
            elif isinstance(record, ArrayRecord):
                if key == words.ARRAYS and not asked:
                    raise ReplyError("weights were not asked for")
                check_arrays(key, record, self.expected(sent, key))
                if key == words.ROUTING and self.routing is not None:
                    count = content.metric_records[words.METRICS][words.NUM_EXAMPLES]
                    self.routing.check(tensors_of(record)[words.SUMS], count)
        if training and self.own_check is not None:
            self.own_check(reply)
        return size

    def expected(self, sent: object, key: str) -> Signature | None:
        """Shapes and dtypes that arrays must have, read once a record; `None` where any will do."""
        if key == words.ROUTING and self.routing is not None:
            return self.routing.signature
        if key != words.ARRAYS or not isinstance(sent, ArrayRecord):
            return None
        if id(sent) not in self._known:
            known = signature_of(sent)
            self._known[id(sent)] = self.own_signature(known) if self.own_signature else known
        return self._known[id(sent)]

    def _check_counts(self, metrics: object, least: int) -> None:
        """Each metric is one number, and those that weigh others are plausible."""
        if not isinstance(metrics, MetricRecord):
            raise ReplyError("the reply has no metrics")
        self._check_count(words.NUM_EXAMPLES, metrics.get(words.NUM_EXAMPLES), least)
        for name, value in metrics.items():
            if isinstance(value, list):
                raise ReplyError(f"metric {name}: must be one number, got a list")
            if name.endswith(words.NUM_EXAMPLES):  # scores are weighted by these
                self._check_count(name, value, 0)

    def _check_count(self, name: str, value: object, least: int) -> None:
        most = self.config.max_examples
        if type(value) is not int or not least <= value <= most:  # True would pass isinstance
            raise ReplyError(f"{name}={value}: must be a whole number {least}..{most}")


def _check_finite(record: MetricRecord) -> None:
    for name, value in record.items():
        values = value if isinstance(value, list) else (value,)
        if not all(map(math.isfinite, values)):
            raise ReplyError(f"metric {name}={value}: must be finite")


def one_line(error: Exception) -> str:
    """A reason fit for a log line, whatever a client wrote into it."""
    text = str(error) if isinstance(error, ReplyError | ValueError) else repr(error)
    safe = "".join(c if c.isprintable() else " " for c in text[: 10 * _REASON_LENGTH])
    return " ".join(safe.split())[:_REASON_LENGTH] or type(error).__name__
