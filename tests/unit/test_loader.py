"""The loader of configurations against Hydra's own, which composes everything anew."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, Node

from fedmoe.configuration.composition import Composer
from fedmoe.configuration.loader import Copies, Loader

WORDS = [
    [],
    ["rounds=3"],
    ["rounds=4"],  # the same base
    ["strategy=fedmoe", "strategy.num_experts=2", "hydra.run.dir=here", "name=b"],
    ["+experiment=insight", "model=moe", "model/router=switch", "~seed", "+model.own=[1,2]"],
    ["rounds=2", "+experiment=insight", "~stopping"],  # in another order
    ["meta_learner=[step_size,prototypes]", "training={epochs: 3}", "hydra.job.env_copy=[HOME]"],
    ["strategy=local,fedavg", "seed=1,2", "hydra/launcher=basic", "hydra.sweep.dir=there"],
    ["hydra.job.config.override_dirname.exclude_keys=[seed]", "seed=1", "rounds=3", "model=mlp"],
    ["hydra.mode=MULTIRUN", "hydra.job.name=mine", "++strategy.new=1"],
    ["hydra.run.dir=there", "hydra={run: {dir: here}}"],
    ["rounds=1", "rounds=2", "training.epochs=1", "training={epochs: 2}"],  # the last one wins
    ["strategy=nothing"],
    ["strategy.nothing=1"],
    ["model/router=switch", "rounds=1"],  # of no use to model=mlp
]


def described(node: Any) -> Any:
    """All that a composed node consists of, flags and interpolations included."""
    if not isinstance(node, Node):
        return repr(node)
    inside = node.__dict__["_content"] if "_content" in node.__dict__ else node._value()
    if isinstance(inside, dict):
        inside = [(key, described(value)) for key, value in inside.items()]
    elif isinstance(inside, list):
        inside = [described(value) for value in inside]
    about = node._metadata
    flags = {name: flag for name, flag in (about.flags or {}).items() if flag is not None}
    return type(node), flags, about.key, about.ref_type, about.optional, about.object_type, inside


def loaded(loader: ConfigLoaderImpl, words: list[str], mode: RunMode) -> Any:
    try:
        return described(loader.load_configuration("config", words, mode))
    except HydraException as error:
        return type(error), str(error)


@pytest.fixture
def loader() -> Loader:
    """One that knows nothing yet."""
    JobRuntime.instance().set("name", "somebody's")
    return Loader(Composer().loader.config_search_path)


def test_it_gives_what_hydras_own_gives_the_first_time_and_later(
    loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydras = ConfigLoaderImpl(loader.config_search_path)
    # The base of a single run is not that of a sweep, which skips what is not there.
    asked = [(words, mode) for words in WORDS for mode in (RunMode.RUN, RunMode.MULTIRUN)]
    expected = []
    for words, mode in asked:
        expected.append(loaded(hydras, words, mode))
        assert loaded(loader, words, mode) == expected[-1], words
    for (words, mode), before in zip(asked, expected, strict=True):
        assert loaded(loader, words, mode) == before, words


def test_what_hydra_notes_of_here_and_now_is_not_that_of_then(
    loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hydras = ConfigLoaderImpl(loader.config_search_path)
    words, then = ["hydra.job.env_copy=[HOME]", "rounds=2"], []

    def moved() -> None:
        monkeypatch.chdir(tmp_path)

    def elsewhere() -> None:
        monkeypatch.setenv("HOME", "elsewhere")

    def renamed() -> None:
        JobRuntime.instance().set("name", "another")

    for change in (moved, elsewhere, renamed):
        then.append(loaded(loader, words, RunMode.RUN))
        change()
        now = loaded(loader, words, RunMode.RUN)
        assert now == loaded(hydras, words, RunMode.RUN)
        assert now not in then


def test_a_choice_that_is_missing_is_missing_to_a_run_alone(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("defaults:\n- model: ???\n- _self_\nrounds: 1\n")
    loader = Composer(config_dir=str(tmp_path), name="own").loader
    assert loader.load_configuration("own", [], RunMode.MULTIRUN).rounds == 1
    with pytest.raises(HydraException, match="must specify 'model'"):
        loader.load_configuration("own", [], RunMode.RUN)


def test_whoever_changes_a_configuration_changes_no_other(loader: Loader) -> None:
    for _ in range(3):
        config = loader.load_configuration("config", ["rounds=2"], RunMode.RUN)
        assert (config.rounds, config.seed, config.training.epochs) == (2, 0, 2)
        config.rounds, config.seed, config.training.epochs = 9, 9, 9


def test_no_file_is_read_twice(loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = ConfigRepository.load_config

    def watched(self: ConfigRepository, config_path: str) -> ConfigResult | None:
        found = original(self, config_path)
        if found is not None:
            read.append(config_path)
        return found

    monkeypatch.setattr(ConfigRepository, "load_config", watched)
    loader.load_configuration("config", ["strategy=fedavg"], RunMode.RUN)
    assert len(read) == len(set(read)) > 10
    read.clear()
    loader.load_configuration("config", ["strategy=local", "model=linear"], RunMode.RUN)
    assert set(read) == {"strategy/local", "model/linear"}


def test_what_cannot_be_copied_is_made_again() -> None:
    class Local:
        """Of this function alone."""

    copies = Copies()
    copies.keep("a", Local())
    assert copies.copy_of("a") is None


def test_files_are_read_again_where_words_bring_others(loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for size in (3, 4):
        (tmp_path / "model" / "own.yaml").write_text(f"name: mlp\nhidden: [{size}]\n")
        words = [f"hydra.searchpath=[file://{tmp_path}]", "model=own"]
        assert loader.load_configuration("config", words, RunMode.RUN).model.hidden == [size]


def test_only_what_was_asked_for_last_is_kept() -> None:
    copies = Copies(most=2)
    for key in ("a", "b"):
        copies.keep(key, DictConfig({"is": key}))
    assert copies.copy_of("a") == {"is": "a"}
    copies.keep("c", DictConfig({"is": "c"}))
    assert [copies.copy_of(key) for key in "abc"] == [{"is": "a"}, None, {"is": "c"}]
