"""What a run's log says of clients that fail."""

import logging
from collections.abc import Mapping

_LOG = logging.getLogger("fedmoe.failures.FailureReports")
_SHOWN = 5  # on the console; all are in clients.jsonl and, at DEBUG, in the log file


class FailureReports:
    """Warns of clients that fail; those that go on failing are a matter for the log file."""

    def __init__(self) -> None:
        self._failing: set[tuple[int, str]] = set()

    def report(self, number: int, task: str, failures: Mapping[int, str]) -> None:
        """Write down who failed.

        Args:
            number: of the round.
            task: `train` or `evaluate`.
            failures: the reason by client.
        """
        new = [client for client in sorted(failures) if (client, task) not in self._failing]
        self._failing = {one for one in self._failing if one[1] != task}
        self._failing |= {(client, task) for client in failures}
        for place, client in enumerate(sorted(failures, key=lambda c: c not in new)):
            shown = client in new and (place < _SHOWN or len(new) <= _SHOWN)
            level = logging.WARNING if shown else logging.DEBUG
            reason = failures[client]
            _LOG.log(level, "round %d, client %s failed to %s: %s", number, client, task, reason)
        if len(new) > _SHOWN:
            _LOG.warning("round %d, %d more clients failed to %s", number, len(new) - _SHOWN, task)
