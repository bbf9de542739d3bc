"""A client's private state on its own disk: safetensors and JSON, a file pair for some rounds.

The server may be killed and go back to its last checkpoint, so that a client is asked for a
round that it has answered before. It then needs its state of the round before, and keeps two
kinds: of the last two rounds, and of the last three at which the server writes a checkpoint. Three,
because the scores that end round r may come with the training of round r + 1: clients are at work
on r + 2 before the checkpoint of r + 1 is written, and that of r is what the server can go back to.
"""

import re
from pathlib import Path

import numpy as np
from flwr.app import RecordDict

from fedmoe.errors import RunError
from fedmoe.messages.arrays import to_record
from fedmoe.tracking import drop_checkpoint, load_checkpoint, save_checkpoint

_RECENT, _AT_CHECKPOINTS = "recent", "at-checkpoints"
_KEPT = {_RECENT: 2, _AT_CHECKPOINTS: 3}
_NAME = re.compile(r"[0-9A-Za-z]{1,64}")


class StateDirectory:
    """The state of one client in one federation.

    Attributes:
        path: the folder.
    """

    def __init__(self, root: Path, federation: str, client: int) -> None:
        """Make nothing yet.

        Args:
            root: the client process's folder.
            federation: the name that the server goes by in this run and in those that resume it.
            client: its number.

        Raises:
            RunError: no name for a federation.
        """
        self.path = _folder(root, federation) / f"client-{client}"

    @staticmethod
    def clients(root: Path, federation: str) -> list[int]:
        """The numbers of the clients whose state of a federation is kept below `root`.

        Raises:
            RunError: no name for a federation.
        """
        found = _folder(root, federation).glob("client-*")
        numbers = [path.name.removeprefix("client-") for path in found]
        return sorted(int(number) for number in numbers if number.isdecimal())

    def save(self, round: int, state: RecordDict, checkpoint_every: int) -> None:
        """Keep the state after a round; later ones belong to a history that was rolled back.

        Args:
            round: that has just been answered.
            state: array records; one that is empty is kept once, to know this client again.
            checkpoint_every: the server's `tracking.checkpoint_every`.

        Raises:
            OSError: the disk refuses; what was kept before is kept still.
        """
        if not state.array_records and self.path.exists():
            return
        # A key may hold slashes, and so may a name: the keys are told apart by their number.
        keys = list(state.array_records)
        arrays = {
            f"{place}/{name}": np.asarray(array.numpy())
            for place, key in enumerate(keys)
            for name, array in state.array_records[key].items()
        }
        at_checkpoint = checkpoint_every and round % checkpoint_every == 0
        folders = [_AT_CHECKPOINTS, _RECENT] if at_checkpoint else [_RECENT]
        try:
            for folder in folders:
                (self.path / folder).mkdir(parents=True, exist_ok=True)
                save_checkpoint(self.path / folder, round, arrays, {"keys": keys}, _KEPT[folder])
        except OSError:
            for folder in folders:  # a round that was not answered is in neither
                drop_checkpoint(self.path / folder, round)
            raise

    def load(self, before: float) -> tuple[int, RecordDict]:
        """The newest state of a round before another.

        Returns:
            Its round and array records; 0 and none where nothing is kept.
        """
        found = []
        for folder in (_RECENT, _AT_CHECKPOINTS):
            try:
                found.append(load_checkpoint(self.path / folder, before))
            except RunError:  # nothing kept, or nothing that can be read
                continue
        if not found:
            return 0, RecordDict()
        newest = max(found, key=lambda one: one.round)
        state = RecordDict()
        for place, key in enumerate(newest.state["keys"]):
            start = f"{place}/"
            names = [name for name in newest.arrays if name.startswith(start)]
            state[key] = to_record({n.removeprefix(start): newest.arrays[n] for n in names})
        return newest.round, state


def _folder(root: Path, federation: str) -> Path:
    if not _NAME.fullmatch(federation):
        raise RunError(f"the server calls its federation {federation[:80]!r}: not a plain name")
    return root / federation
