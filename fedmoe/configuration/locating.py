"""Where in the schema a mistake is, in the user's terms."""

import dataclasses
import functools
from typing import Any, NamedTuple, get_args, get_type_hints

from fedmoe.schema import ExperimentConfig

Path = tuple[int | str, ...]


class Place(NamedTuple):
    """A place in the configuration.

    Attributes:
        cls: the class that holds the value.
        path: the keys that lead there.
        group: the group that it belongs to, such as `model` or `model/router`.
    """

    cls: type
    path: Path
    group: str


def locate(location: Path) -> Place:
    """Where pydantic means: it says `model, mlp, hidden, 0` where the user types `model.hidden`."""
    cls: type = ExperimentConfig
    holder, group = cls, ""
    path: Path = ()
    options: tuple[type, ...] = ()
    for part in location:
        if options:  # a tag, which picks one of them
            cls = next((o for o in options if part in get_args(hints(o)["name"])), cls)
            options = ()
            continue
        path, holder = (*path, part), cls
        hinted = _without_none(hints(cls).get(str(part)))
        options = get_args(get_args(hinted)[0]) if get_args(hinted) else ()
        options = tuple(o for o in options if dataclasses.is_dataclass(o))
        if options or len(path) == 1:
            group = "/".join(map(str, path))
        if dataclasses.is_dataclass(hinted):
            cls = hinted  # type: ignore[assignment]
        elif not options:  # what follows is a place in a list or a table
            break
    return Place(holder, path, group)


def _without_none(hinted: Any) -> Any:
    """The class of what may be absent."""
    classes = [one for one in get_args(hinted) if dataclasses.is_dataclass(one)]
    return classes[0] if len(classes) == 1 and type(None) in get_args(hinted) else hinted


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields."""
    return get_type_hints(cls, include_extras=True)
