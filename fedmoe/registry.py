"""Factories of the user's own, by the name that the configuration calls them by."""

from collections.abc import Callable
from typing import Any

from fedmoe.errors import ConfigError

Factory = Callable[..., Any]


class Registry:
    """Factories of one kind.

    Attributes:
        key: the configuration's key that names one, such as `model.factory`.
        kind: what they make, in words.
        factories: by name.
    """

    def __init__(self, key: str, kind: str, register: str) -> None:
        self.key, self.kind, self._register = key, kind, register
        self.factories: dict[str, Factory] = {}

    def add(self, name: str) -> Callable[[Factory], Factory]:
        """A decorator that remembers a factory under a name."""

        def remember(factory: Factory) -> Factory:
            self.factories[name] = factory
            return factory

        return remember

    def find(self, name: str, key: str | None = None) -> Factory:
        """The factory of a name.

        Args:
            name: what it was registered under.
            key: of the configuration, where it is not the usual one.

        Raises:
            ConfigError: there is none.
        """
        if name not in self.factories:
            known = ", ".join(sorted(self.factories)) or f"none (see {self._register})"
            raise ConfigError(f"{key or self.key}={name}: no such {self.kind}; registered: {known}")
        return self.factories[name]
