"""What the clients of one cohort keep for themselves.

Letters: C clients of the cohort.
"""

from dataclasses import dataclass, field

import numpy as np
import torch

from fedmoe.clients.states import States
from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import Stack
from fedmoe.models import Parameters


@dataclass
class OwnArrays:
    """The clients' private arrays: what there is can be read, what is new waits until `finish`.

    Attributes:
        states: the private arrays; changed by `finish` only, so that a cohort that fails half-way
            can be asked again.
        clients: (C,) the clients' partitions.
        device: where arrays are wanted.
    """

    states: States
    clients: Ints
    device: torch.device
    _new: list[tuple[str, Parameters]] = field(default_factory=list)

    def read(self, key: str, default: Parameters) -> Parameters:
        """Private arrays, (C, ...) by name, or the default (1 or C, ...) for who has none."""
        if not default:
            return {}
        found = self.states.read(key, self.clients, default)
        if found is None:
            return default
        return {name: found[name].to(self.device) for name in default}

    def keep(self, key: str, arrays: Parameters) -> None:
        """Keep private arrays, (C, ...) by name, once all has gone well; see `finish`."""
        if arrays:
            self._new.append((key, arrays))

    def finish(self, trained: Parameters) -> None:
        """Let the clients keep what is theirs.

        One whose training has diverged stays as it was: its reply is refused, but it may do
        better in the next round, with its samples in another order or with other guidance.

        Args:
            trained: the models that came out, (C, ...) by name.
        """
        if not self._new:
            return
        stacks = [(key, Stack(arrays)) for key, arrays in self._new]
        finite_C = Stack(trained).finite_C
        for _, stack in stacks:
            finite_C = finite_C & stack.finite_C
        places = np.flatnonzero(finite_C)
        if not len(places):
            return
        whole = len(places) == len(self.clients)
        for key, stack in stacks:
            mine = stack if whole else stack.take(places)
            self.states.write(key, self.clients[places], mine.tensors)
