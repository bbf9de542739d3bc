"""Where clients' private arrays live between rounds.

Stacked in a simulation; in Flower's `Context.state` in a deployment.

Letters: C clients asked about, R rows of a table.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import RecordDict
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.data.federation import Ints
from fedmoe.messages.arrays import CohortRecord, Stack, as_arrays, copied, gather, lazy_record
from fedmoe.models.base import Parameters


class States(Protocol):
    """Private arrays of many clients, by the key of their record."""

    def read(self, key: str, clients: Ints, default: Parameters) -> Parameters | None:
        """The clients' arrays, (C, ...) by name; not to be changed.

        Args:
            key: of the record.
            clients: (C,).
            default: (1, ...) or (C, ...) by name, for clients that have none.

        Returns:
            `None` if none of the clients has any.
        """
        ...

    def write(self, key: str, clients: Ints, arrays: Parameters) -> None:
        """Keep the clients' arrays, (C, ...) by name, which must not change afterwards."""
        ...


class StackedStates:
    """Private arrays of a simulated federation: one table a record, a row for each client.

    Memory grows with the clients that have been asked, not with the federation.
    """

    def __init__(self) -> None:
        self._tables: dict[str, _Table] = {}

    def read(self, key: str, clients: Ints, default: Parameters) -> Parameters | None:
        """See `States`."""
        return self._tables[key].read(clients, default) if key in self._tables else None

    def write(self, key: str, clients: Ints, arrays: Parameters) -> None:
        """See `States`."""
        if key not in self._tables:
            self._tables[key] = _Table()
        self._tables[key].write(clients, arrays)

    def everything(self) -> list["Kept"]:
        """All arrays: record, clients, and (R, ...) by name."""
        return [
            (key, table.clients, as_arrays(table.arrays)) for key, table in self._tables.items()
        ]

    def state(self) -> dict[str, NDArray[Any]]:
        """All arrays, for a checkpoint: `key/name`, and whose rows they are.

        They are views, which the next write may change.
        """
        return saved_state(self.everything())

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Undo `state`."""
        self.put_back(restored_state(arrays))

    def put_back(self, kept: Iterable["Kept"]) -> None:
        """Undo `everything`; the arrays are copied."""
        for key, clients, arrays in kept:
            self.write(key, clients, copied(arrays))


Kept = tuple[str, Ints, dict[str, NDArray[Any]]]  # record, clients, and their arrays by name
_CLIENTS = "#clients"


def saved_state(kept: Iterable[Kept]) -> dict[str, NDArray[Any]]:
    """Private arrays as in a checkpoint: `key/name`, and `key#clients` whose rows they are."""
    saved: dict[str, NDArray[Any]] = {}
    for key, clients, arrays in kept:
        saved[f"{key}{_CLIENTS}"] = clients
        saved |= {f"{key}/{name}": array for name, array in arrays.items()}
    return saved


def restored_state(saved: Mapping[str, NDArray[Any]]) -> list[Kept]:
    """Undo `saved_state`."""
    kept = []
    for path, clients in saved.items():
        if path.endswith(_CLIENTS):
            key = path.removesuffix(_CLIENTS)
            names = [p.removeprefix(f"{key}/") for p in saved if p.startswith(f"{key}/")]
            kept.append((key, clients.astype(np.int64), {n: saved[f"{key}/{n}"] for n in names}))
    return kept


class _Table:
    """One record of many clients: a tensor per name, with a row for each client seen so far."""

    def __init__(self) -> None:
        self._row_of: Ints = np.zeros(0, dtype=np.int64)  # by client; -1 for none
        self._clients: Ints = np.zeros(0, dtype=np.int64)  # by row
        self._rows: Parameters = {}  # with room for more rows than are used

    @property
    def clients(self) -> Ints:
        """Whose rows they are, (R,)."""
        return self._clients

    @property
    def arrays(self) -> Parameters:
        """The rows in use, (R, ...) by name."""
        return {name: rows[: len(self._clients)] for name, rows in self._rows.items()}

    def read(self, clients: Ints, default: Parameters) -> Parameters | None:
        if np.array_equal(clients, self._clients):
            return self.arrays
        row_C = self._find(clients)
        if (row_C < 0).all():
            return None
        rows, unknown = torch.from_numpy(np.maximum(row_C, 0)), torch.from_numpy(row_C < 0)
        read = {}
        for name, own in self._rows.items():
            read[name] = own[rows]
            if unknown.any():
                fallback = default[name].to(own).expand(len(clients), *own.shape[1:])
                read[name][unknown] = fallback[unknown]
        return read

    def write(self, clients: Ints, arrays: Parameters) -> None:
        known = np.array_equal(clients, self._clients)
        if known or not len(self._clients):
            self._rows = dict(arrays)  # nobody else's rows to keep: no copy
        if known:
            return
        new = clients[self._find(clients) < 0]
        self._clients = np.concatenate([self._clients, new])
        self._row_of = _grown(self._row_of, int(clients.max(initial=-1)) + 1)
        self._row_of[new] = np.arange(len(self._clients) - len(new), len(self._clients))
        rows = torch.from_numpy(self._row_of[clients])
        for name, own in arrays.items():
            if self._rows[name] is not own:
                # What was restored lies on the CPU, until clients train elsewhere.
                here = self._rows[name].to(own.device)
                self._rows[name] = _with_room(here, len(self._clients))
                self._rows[name][rows] = own

    def _find(self, clients: Ints) -> Ints:
        """Each client's row, -1 for none."""
        known = clients < len(self._row_of)
        row_C = np.full(len(clients), -1)
        row_C[known] = self._row_of[clients[known]]
        return row_C


def _grown(row_of: Ints, length: int) -> Ints:
    return np.concatenate([row_of, np.full(max(0, length - len(row_of)), -1)])


def _with_room(rows: Tensor, count: int) -> Tensor:
    """The same rows in a tensor of at least `count`; doubling keeps the copies few."""
    if count <= len(rows):
        return rows
    wider = rows.new_empty(max(count, 2 * len(rows)), *rows.shape[1:])
    wider[: len(rows)] = rows
    return wider


class ContextStates:
    """The states of clients whose Flower contexts are at hand.

    Attributes:
        state_of: each client's `Context.state`.
    """

    def __init__(self, state_of: Mapping[int, RecordDict]) -> None:
        self.state_of = state_of

    def read(self, key: str, clients: Ints, default: Parameters) -> Parameters | None:
        """See `States`."""
        found = [self.state_of[c].array_records.get(key) for c in clients.tolist()]
        if all(record is None for record in found):
            return None
        rows = _rows(default, len(clients))
        return gather([rows[n] if record is None else record for n, record in enumerate(found)])

    def write(self, key: str, clients: Ints, arrays: Parameters) -> None:
        """See `States`."""
        stack = Stack(arrays)
        for row, client in enumerate(clients.tolist()):
            self.state_of[client][key] = CohortRecord(stack, row)


def _rows(arrays: Parameters, count: int) -> Sequence[Any]:
    wide = {name: a.expand(count, *a.shape[1:]) for name, a in arrays.items()}
    return [lazy_record({n: a[row] for n, a in wide.items()}) for row in range(count)]
