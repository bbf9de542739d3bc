"""How errors about the configuration are worded."""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_SHOWN_CHARACTERS = 120


def no_such_key(
    section: str, name: str, names: Sequence[str], owners: Sequence[str] = (), table: Any = None
) -> str:
    """Word the message for an unknown key.

    Args:
        section: the dotted path above it with its final dot, or nothing.
        name: the unknown part.
        names: the keys that are there.
        owners: `group=option` of those that have such a key.
        table: the whole configuration, searched where no sibling's name is near.
    """
    near = hint(name, names, section)
    if not near and owners:
        near = f"it belongs to {' and '.join(owners)}. "
    if not near and isinstance(table, dict):
        own = {key: value for key, value in table.items() if key != "hydra"}
        near = _hint_below(name, [key for key, _ in leaves(own)])
    where = f" in {section.rstrip('.')}" if section else ""
    return f"no such key; {near}{allowed(names, where)}"


def _hint_below(name: str, keys: Sequence[str]) -> str:
    """The nearest dotted keys for a name without its group, or with `_` for the dot."""
    last = {key.rpartition(".")[2] for key in keys}
    near = [name] if name in last else difflib.get_close_matches(name, last, n=1, cutoff=0.8)
    matches = [key for key in keys if key.rpartition(".")[2] in near]
    matches = matches or [key for key in keys if key.replace(".", "_") == name]
    return f"did you mean {' or '.join(matches)}? " if matches else ""


def one_line(text: str) -> str:
    """Escape what a terminal would act on, and cut what is too long to read."""
    safe = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return safe if len(safe) <= _SHOWN_CHARACTERS else f"{safe[:_SHOWN_CHARACTERS]}..."


def hint(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return `did you mean x? ` with the nearest name, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def allowed(names: Iterable[str], where: str = "") -> str:
    """Return `Allowed: a, b`, sorted; of no names `Allowed: nothing`."""
    return f"Allowed{where}: {', '.join(sorted(names)) or 'nothing'}"


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of a nested table, and their values."""
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def brief(error: BaseException) -> str:
    """One line of an error, and of the one below it: Hydra often leaves the reason to that."""
    chain = [e for e in (error, error.__cause__) if e is not None]
    lines = [str(e).strip().partition("\n")[0] for e in chain]
    return ": ".join(line for line in lines if line) or type(error).__name__
