"""What one client answers: its experiment, its private state, and messages turned into replies.

No network here: `node` brings messages and takes replies away.
"""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message, MessageType, MetricRecord, RecordDict

from fedmoe.clients import Experiment, answer_cohort, load_experiment, load_site_experiment
from fedmoe.clients.states import ContextStates
from fedmoe.data.sites import Site, is_of_sites
from fedmoe.errors import ConfigError, FedmoeError, RunError
from fedmoe.lan.packing import is_packed, pack, unpack
from fedmoe.lan.state_directory import StateDirectory
from fedmoe.messages import words
from fedmoe.messages.arrays import plain
from fedmoe.messages.riding import has_trained
from fedmoe.messages.seams import with_content
from fedmoe.messages.sizes import content_bytes
from fedmoe.training.process import prepare_process

_LOG = logging.getLogger("fedmoe.lan.Desk")
_LONGEST_REASON = 300  # characters


class Desk:
    """One client in one run."""

    def __init__(
        self,
        run_config: Mapping[str, Any],
        run_id: int,
        client: int,
        root: Path,
        data: Path | None = None,
    ) -> None:
        """Load the experiment and the state.

        Args:
            run_config: of the run's app: `config`, a resolved experiment, and `federation`.
            run_id: Flower's number of the run.
            client: its number.
            root: folder for private state.
            data: the client's own table; `None` for its share of what the experiment names.

        Raises:
            FedmoeError: the configuration is not allowed, the data are not to be had, or there
                is no such client.
        """
        self._config_json = str(run_config.get("config", ""))
        if not self._config_json:
            raise ConfigError("the run has no resolved configuration (its key `config` is empty)")
        self.experiment = _experiment(self._config_json, client, data)
        self._states = StateDirectory(root, _federation(run_config, run_id), client)
        self._client, self._greeted = client, False
        self._round, self._state = self._states.load(math.inf)
        prepare_process(self.experiment.config.training.num_threads)

    def answer(self, message: Message) -> Message:
        """The reply to a message; an error reply where this client fails."""
        try:
            return self._answer(message)
        except Exception as error:  # whatever came over the network, this client goes on
            return refusal(message, error)

    def _answer(self, message: Message) -> Message:
        packed = is_packed(message.content)
        asked = with_content(message, unpack(message.content))
        if asked.metadata.message_type == MessageType.QUERY:
            self._greeted = True
            return partition_reply(message, self._client, self._round)
        training = asked.metadata.message_type == MessageType.TRAIN
        number = words.get_config(asked.content).get(words.SERVER_ROUND)
        number = number if type(number) is int else self._round + training
        if number > 1 and not (self._greeted or self._round):
            # The server takes this for a process that has been told things, and was killed.
            error = Error(words.STRANGER, "has come again without its state")
            return Message(error, reply_to=message)
        self._go_back_to(number if training else number + 1)
        own = RecordDict(dict(self._state))
        states = ContextStates({self._client: own})
        reply = answer_cohort(self.experiment, [asked], np.array([self._client]), states)[0]
        if not reply.has_content():
            return reply
        content = plain(reply.content)
        self._refuse_too_long(content)
        # Kept before it is told: a state that is lost could not be had again. Evaluation changes it
        # too, where there is a router: what that did is compared with what it does next.
        if training and has_trained(reply):
            self._keep(number, own)
        elif any(own[key] is not self._state.get(key) for key in own):
            self._keep(self._round, own)
        return Message(pack(content) if packed else content, reply_to=message)

    def _keep(self, number: int, own: RecordDict) -> None:
        """Have a state from now on, as that after round `number`."""
        state = plain(own)
        self._states.save(number, state, self.experiment.config.tracking.checkpoint_every)
        self._round, self._state = number, state

    def _refuse_too_long(self, content: RecordDict) -> None:
        """Say so oneself: the server would break off the connection, and hear of nothing."""
        size, most = content_bytes(content), self.experiment.config.runtime.max_reply_bytes
        if size > most:
            raise RunError(f"a reply of {size} bytes: at most {most} (runtime.max_reply_bytes)")

    def _go_back_to(self, before: int) -> None:
        """Have the state of an earlier round where the server has gone back to one."""
        if self._round < before:
            return
        self._round, self._state = self._states.load(before)
        _LOG.warning("the server is back before round %d: so is this client's state", before)


def own_number(run_config: Mapping[str, Any], run_id: int, root: Path, message: Message) -> int:
    """The number of a client that was given none: the one that it had, or that it is offered.

    Args:
        run_config: of the run's app.
        run_id: Flower's number of the run.
        root: folder for private state.
        message: the first one of the run.

    Raises:
        ConfigError: there is none for it.
    """
    if had := StateDirectory.clients(root, _federation(run_config, run_id)):
        return had[0]
    record = unpack(message.content).get(words.CONFIG)
    offered = record.get(words.OFFERED) if isinstance(record, ConfigRecord) else None
    if type(offered) is not int or offered < 0:
        raise ConfigError(
            "client.partition: no value given, and the server has no number left for this client "
            "(partition.num_clients)"
        )
    return offered


def _federation(run_config: Mapping[str, Any], run_id: int) -> str:
    """What private state is kept under."""
    return str(run_config.get("federation") or run_id)


def _experiment(config_json: str, client: int, data: Path | None) -> Experiment:
    if data is not None:
        return load_site_experiment(config_json, Site(client, data))
    found = load_experiment(config_json)
    if is_of_sites(found.config.data):
        raise ConfigError("client.data: no value given; each client brings its own table")
    count = found.data.num_clients
    if client >= count:
        raise ConfigError(
            f"client.partition={client}: this federation has {count} clients, numbered from 0"
        )
    return found


def partition_reply(message: Message, client: int, state_round: int = 0) -> Message:
    """Say which client this node is, and of which round its state: node ids tell neither."""
    record = MetricRecord({words.PARTITION_ID: client, words.STATE_ROUND: state_round})
    return Message(RecordDict({words.METRICS: record}), reply_to=message)


def refusal(message: Message, error: Exception) -> Message:
    """An error reply that says why, in one line."""
    reason = " ".join(str(error).split())[:_LONGEST_REASON]
    kind = "" if isinstance(error, FedmoeError) else f"{type(error).__name__}: "
    return Message(Error(words.CLIENT_FAILED, f"{kind}{reason}"), reply_to=message)


def cut_off(message: Message) -> Message:
    """The reply of a process that takes the place of the one that was asked."""
    reason = "started again, or cut off, before it had answered"
    asked_who = message.metadata.message_type == MessageType.QUERY  # and is to be asked again
    code = words.STRANGER if asked_who else words.CLIENT_FAILED
    return Message(Error(code, reason), reply_to=message)


def farewell(message: Message) -> str | None:
    """How the run ended, if a message says that it did."""
    if message.metadata.message_type != MessageType.QUERY:
        return None
    record = unpack(message.content).get(words.CONFIG)
    status = record.get(words.FAREWELL) if isinstance(record, ConfigRecord) else None
    return status if isinstance(status, str) else None
