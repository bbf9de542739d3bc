"""Lists of messages that are made when they are first looked at."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from flwr.app import Message


class MessagesOnDemand(Sequence[Message]):
    """A list of messages, each made when somebody first asks for it, and then kept."""

    def __init__(self, made: Mapping[int, Message]) -> None:
        self._made = dict(made)

    @abstractmethod
    def _make(self, place: int) -> Message:
        """The message at a place, 0 to length - 1."""

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # counts from the end, and raises IndexError
        if place not in self._made:
            self._made[place] = self._make(place)
        return self._made[place]

    def __iter__(self) -> Iterator[Message]:
        return map(self.__getitem__, range(len(self)))
