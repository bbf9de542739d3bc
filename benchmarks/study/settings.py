"""What the methods are compared on: kinds of clients, from like to unlike."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Family = Literal["synthetic", "digits", "mnist5k", "linear"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One kind of clients.

    Attributes:
        name: in tables and on the command line.
        family: which data; names a table and a panel of the plots.
        words: the experiment as fedmoe's command line says it.
        groups: how many labelling functions or groups of clients there are; 1 where clients
            differ by degrees.
    """

    name: str
    family: Family
    words: tuple[str, ...]
    groups: int = 1


def _setting(name: str, family: Family, *more: str, groups: int = 1) -> Setting:
    experiment = name.partition("=")[0]
    words = (f"+experiment=regimes/{experiment}", *more)
    return Setting(name=name, family=family, words=words, groups=groups)


def _skewed(prefix: str, family: Family, alphas: Sequence[float]) -> list[Setting]:
    name = f"{prefix}dirichlet"
    return [_setting(f"{name}={a:g}", family, f"partition.alpha={float(a)}") for a in alphas]


_ALL = [
    _setting("mixture", "synthetic", groups=3),
    _setting("clustered", "synthetic", groups=3),
    _setting("revealed", "synthetic", groups=3),
    _setting("near_iid", "synthetic", groups=3),
    _setting("permuted", "digits", groups=4),
    _setting("rotated", "digits", groups=4),
    *_skewed("", "digits", (0.05, 0.1, 0.3, 1, 10, 100)),
    _setting("iid", "digits"),
    # MNIST's images cost five times as much as digits: fewer settings of it.
    _setting("mnist5k_permuted", "mnist5k", groups=4),
    _setting("mnist5k_rotated", "mnist5k", groups=4),
    *_skewed("mnist5k_", "mnist5k", (0.1, 1)),
    _setting("mnist5k_iid", "mnist5k"),
]
SETTINGS = {setting.name: setting for setting in _ALL}
FAMILIES = tuple(dict.fromkeys(setting.family for setting in _ALL))
