"""One federation in which clients fail in every way that is known, and the others go on.

Each line of docs/deployment-faults.md that is about a client is something here.
"""

import dataclasses
import json
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import lan_hostile as hostile
import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Error, Message, MessageType
from lan_runs import MORE_KEYS, PATIENCE, STAYING, Stage, wait_until, with_staying_clients

import fedmoe.simulations
from fedmoe.clients import Experiment, answer
from fedmoe.config import load_config, to_json
from fedmoe.errors import ConfigError, FedmoeError
from fedmoe.keys import make_keys
from fedmoe.lan.node import Node
from fedmoe.lan.recall import Recall
from fedmoe.messages import words
from fedmoe.simulations import ContextGrid, run_experiment
from fedmoe.tracking import load_checkpoint

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc and prlimit"),
]
STOPPED, FULL = 1, 2  # of those that stay: asleep for a round, and without room for one
LIES, FORGES, REPLAYS, VANISHES, TERMINATED, KILLED, HANGS, NOBODY = range(3, 11)
CLIENTS = NOBODY
ROUNDS, DEADLINE, STRIKES = 5, 22, 3
EXPERIMENT = [
    "data=digits", "partition=iid", f"partition.num_clients={CLIENTS}", "model=mlp",
    "model.hidden=[64]", "strategy=fedavg", "training=sgd", "training.epochs=1",
    "training.reset_optimizer=false", f"rounds={ROUNDS}", f"evaluate_every={ROUNDS}",
    "tracking.checkpoint_every=1",
]  # fmt: skip
LIMITS = [
    f"runtime.keys={MORE_KEYS}", f"runtime.min_clients={CLIENTS}", f"runtime.max_strikes={STRIKES}",
    f"runtime.round_timeout={DEADLINE}", "runtime.max_reply_bytes=100000",
]  # fmt: skip

Told = dict[tuple[int, int], tuple[str, str | None]]


@dataclasses.dataclass
class Play:
    """The clients that misbehave, and what the test does to them while the server runs."""

    stage: Stage
    folder: Path

    def __post_init__(self) -> None:
        make = self._place
        self.gate = hostile.Replaying(*make(REPLAYS))
        self.hanging = hostile.Hanging(*make(HANGS), when=2)
        lies = [hostile.poison(np.nan), hostile.poison(np.inf), hostile.other_shape]
        forgeries = [hostile.other_dtype, hostile.oversized, hostile.forged_weight]
        self.threads = [
            self.gate, self.hanging, hostile.Vanishing(*make(VANISHES)),
            hostile.Lying(*make(LIES), *lies), hostile.Lying(*make(FORGES), *forgeries),
        ]  # fmt: skip

    def _place(self, number: int) -> tuple[Any, int, Path]:
        return self.stage.access(number), number, self.folder / f"state{number}"

    def begin(self) -> None:
        self.held = {
            number: self.stage.start(
                f"client{number}", sys.executable, hostile.__file__,
                *self.stage.client_words(number), f"client.keys={MORE_KEYS}",
            )
            for number in (TERMINATED, KILLED)
        }  # fmt: skip
        wait_until(lambda: "listening at" in self.stage.log("faults"), "the server")
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.hanging.released.set()
        for thread in self.threads:
            thread.ended.set()

    def has_state(self, number: int, round: int) -> bool:
        name = f"*/client-{number}/recent/checkpoints/round-{round:05d}.json"
        return any((self.stage.folder / f"state{number}").glob(name))

    def kill_at_work(self) -> None:
        """In round 2, of which one that is stopped before hears nothing."""
        hold = self.stage.folder / "hold"
        wait_until(lambda: self.gate.round == 1, "round 1")
        wait_until(lambda: all(self.has_state(number, 1) for number in self.held), "round 1")
        stopped = Recall(self.stage.folder / f"state{STOPPED}", STOPPED)
        wait_until(lambda: self.has_state(STOPPED, 1) and stopped.owed() is None, "its reply")
        self.stage.started[STOPPED].send_signal(signal.SIGSTOP)
        hold.touch()
        self.gate.may_end = 1
        at_work = [self.stage.folder / f"held-{number}" for number in self.held]
        wait_until(lambda: all(path.exists() for path in at_work), "round 2")
        self.held[KILLED].kill()
        self.held[TERMINATED].send_signal(signal.SIGTERM)
        assert self.held[TERMINATED].wait(PATIENCE) == 128 + signal.SIGTERM
        hold.unlink()
        self.again = [self.stage.client(number, f"client.keys={MORE_KEYS}") for number in self.held]

    def fill_disk(self, pid: int) -> None:
        """In round 3; it has room for a log, and none for a state."""
        wait_until(lambda: self.has_state(FULL, 2), "round 2")
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (12_000, before[1]))
        self.gate.may_end = 2
        wait_until(lambda: "File too large" in self.stage.log(f"client{FULL}"), "round 3")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def wake(self) -> None:
        """In round 3, which ends later."""
        self.stage.started[STOPPED].send_signal(signal.SIGCONT)

    def let_go(self) -> None:
        """In round 3: who hangs says so, too late; then all come to the end."""
        self.hanging.released.set()
        place = Recall(self.hanging.folder, HANGS)
        wait_until(lambda: place.owed() is None, "the late reply")
        self.gate.may_end = ROUNDS


@pytest.fixture(scope="module")
def staying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    yield from with_staying_clients(tmp_path_factory.mktemp("lan"))


def test_whatever_clients_do_the_others_go_on(
    staying: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play(staying, tmp_path)
    server = staying.server(*EXPERIMENT, *LIMITS, name="faults")
    try:
        with ThreadPoolExecutor() as pool:
            play.begin()
            nobody = pool.submit(take_part, staying, tmp_path / "nobody", NOBODY, client=40)
            play.kill_at_work()
            assert_another_certificate_is_refused(staying, tmp_path)
            play.fill_disk(staying.started[FULL].pid)
            play.wake()
            play.let_go()
            assert server.wait(PATIENCE) == 0, staying.log("faults")
            with pytest.raises(ConfigError, match=r"client\.partition=40: this federation has 10"):
                nobody.result(PATIENCE)
    finally:
        play.end()
    assert [process.wait(PATIENCE) for process in play.again] == [0, 0]
    assert len(staying.living()) == STAYING
    lines = staying.rounds("faults", "clients.jsonl")
    told = {(t["round"], t["client"]): (t["status"], t["reason"]) for t in lines}
    assert_told(told)
    assert_summary(staying.folder / "faults")
    assert_numbers_of_the_others(staying.folder / "faults", told, tmp_path / "own", monkeypatch)
    for number in range(CLIENTS):
        assert "Traceback" not in staying.log(f"client{number}")


def take_part(stage: Stage, root: Path, number: int, client: int, wait: float = PATIENCE) -> None:
    root.mkdir(exist_ok=True)
    access = stage.access(number)
    Node(access=access, client=client, root=root, data=None, wait=wait, stay=False).run()


def assert_another_certificate_is_refused(stage: Stage, folder: Path) -> None:
    """The same words as another server's certificate would get."""
    make_keys(folder / "others", clients=1)
    access = dataclasses.replace(
        stage.access(NOBODY), root_certificates=folder / "others" / "ca.crt"
    )
    with pytest.raises(FedmoeError, match="its certificate is not to be trusted"):
        Node(access=access, client=0, root=folder, data=None, wait=0.1, stay=False).run()


def assert_told(told: Told) -> None:
    """What `clients.jsonl` says of each."""
    for number in (0, REPLAYS):
        assert {told[round, number] for round in range(1, ROUNDS + 1)} == {("ok", None)}
    for number in (STOPPED, FULL, TERMINATED, KILLED, HANGS):
        assert told[1, number] == told[ROUNDS, number] == ("ok", None), told
    assert told[1, VANISHES] == ("failed", "ZeroDivisionError: on purpose")
    for number in (TERMINATED, VANISHES, STOPPED):
        assert "Node Unavailable" in str(told[2, number])
    assert told[2, KILLED] == ("failed", "started again, or cut off, before it had answered")
    assert told[2, HANGS] == ("failed", "no reply before the deadline")
    assert told[3, FULL] == ("failed", "OSError: [Errno 27] File too large")
    assert told[4, FULL] == told[3, KILLED] == told[4, HANGS] == ("ok", None)
    assert (3, HANGS) not in told  # it is busy
    assert not any(key == (round, VANISHES) for key in told for round in range(3, ROUNDS + 1))
    reasons = {
        LIES: ["not finite", "not finite", "is float32[65, 64], expected float32[64, 64]"],
        FORGES: [
            "is float64[64, 64], expected float32[64, 64]",
            "bytes, at most 100000 are allowed",
            "num-examples=1000000000000: must be a whole number",
        ],
    }
    for number, whys in reasons.items():
        found = [told[round, client] for round, client in sorted(told) if client == number]
        assert [status for status, _ in found] == ["failed"] * STRIKES  # and not asked any more
        for (_, reason), why in zip(found, whys, strict=True):
            assert why in str(reason)


def assert_summary(path: Path) -> None:
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["strikes"] == {str(number): STRIKES for number in (LIES, FORGES)}


def assert_numbers_of_the_others(
    path: Path, told: Told, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in one process where whoever failed was not asked at all: nobody has lost a state."""

    def some(messages: Sequence[Message], contexts: Sequence[Context]) -> list[Message]:
        if messages[0].metadata.message_type != MessageType.TRAIN:
            return answer(messages, contexts)
        pairs, failed = [], []
        for message, context in zip(messages, contexts, strict=True):
            config = message.content[words.CONFIG]
            assert isinstance(config, ConfigRecord)
            key = config[words.SERVER_ROUND], context.node_config[words.PARTITION_ID]
            if told.get(cast(tuple[int, int], key), ("failed", None))[0] == "ok":
                pairs.append((message, context))
            else:
                failed.append(Message(Error(2, "as over there"), reply_to=message))
        return [*answer([m for m, _ in pairs], [c for _, c in pairs]), *failed]

    class Grid(ContextGrid):
        def __init__(self, experiment: Experiment) -> None:
            super().__init__(to_json(experiment.config), experiment.data.num_clients, some)

    monkeypatch.setattr(fedmoe.simulations, "InProcessGrid", Grid)
    quiet = ["tracking.plots=false", "tracking.progress=none", "tracking.log_level=ERROR"]
    run_experiment(load_config([*EXPERIMENT, *quiet]), own)
    theirs, ours = (
        [json.loads(line)["train"] for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (path, own)
    )
    for their, our in zip(theirs, ours, strict=True):
        assert their["clients"] == our["clients"]
        assert their["loss"] == pytest.approx(our["loss"], abs=1e-5)
    there, here = load_checkpoint(path).arrays, load_checkpoint(own).arrays
    for name, array in there.items():
        if name.startswith("global/"):
            np.testing.assert_allclose(array, here[name], rtol=0, atol=1e-5)
