"""What all tests share."""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import pytest

from fedmoe.heap import quick_start, spare_all

with quick_start():
    import torch
    from hypothesis import settings
    from omegaconf import DictConfig

    import fedmoe.config
    from fedmoe.configuration.composition import Composer
    from fedmoe.configuration.words import Word

# Two threads on a busy machine make the small products of these tests ten times slower.
torch.set_num_threads(1)

# Elsewhere hypothesis looks for new counterexamples; a change must not fail for somebody else's.
settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


_MOST = 32


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is made meanwhile stays: it need not be looked through again and again."""
    with quick_start():
        return (yield)


def pytest_unconfigure() -> None:
    """The process ends."""
    spare_all()


class RememberingComposer(Composer):
    """Composes the package's own YAML for the same words once: it takes longer than most tests."""

    def __init__(self) -> None:
        super().__init__()
        self._composed: OrderedDict[tuple[tuple[Word, ...], bool], DictConfig] = OrderedDict()

    def compose(self, words: Sequence[Word], sweep: bool = False) -> DictConfig:
        key = tuple(words), sweep
        if key not in self._composed:
            self._composed[key] = super().compose(words, sweep)
            if len(self._composed) > _MOST:  # what lives long is looked through by the collector
                self._composed.popitem(last=False)
        return self._composed[key]  # whoever asks copies it


@pytest.fixture(scope="session", autouse=True)
def remembered_compositions() -> Iterator[None]:
    """`load_config` with the same words reads no YAML; what it reads of them is checked as ever."""
    composer = RememberingComposer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fedmoe.config, "default_composer", lambda: composer)
        yield
