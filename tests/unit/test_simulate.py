"""The command: what reaches the job, exit codes, sweeps. The runs themselves are stand-ins."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobRuntime
from hydra.types import RunMode
from omegaconf import OmegaConf

from fedmoe.config import load_config, to_json
from fedmoe.configuration.composition import Composer
from fedmoe.configuration.loader import Loader
from fedmoe.configuration.words import PREFIX
from fedmoe.errors import DataError, RunError
from fedmoe.schema import ExperimentConfig
from fedmoe.simulate import Job, SweepJobError, job_dir, main

CONF = Path(__file__).parents[2] / "fedmoe" / "conf"
Run = Callable[[ExperimentConfig, Path], dict[str, Any]]


class Stage:
    """Stand-ins for the runs and the report, and what they were given."""

    def __init__(self) -> None:
        self.runs: list[tuple[ExperimentConfig, Path]] = []
        self.tables: list[Path] = []
        self.run: Run = lambda config, run_dir: {"objective": float(config.rounds)}

    def run_experiment(self, config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        self.runs.append((config, run_dir))
        return self.run(config, run_dir)

    def print_sweep(self, sweep_dir: Path) -> None:
        self.tables.append(sweep_dir)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    simulations, report = ModuleType("fedmoe.simulations"), ModuleType("fedmoe.report")
    monkeypatch.setattr(simulations, "run_experiment", made.run_experiment, raising=False)
    monkeypatch.setattr(report, "print_sweep", made.print_sweep, raising=False)
    monkeypatch.setitem(sys.modules, "fedmoe.simulations", simulations)
    monkeypatch.setitem(sys.modules, "fedmoe.report", report)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    return made


# ------------------------------------------------------------------------ one run


def test_a_run_gets_its_configuration_and_directory(stage: Stage, tmp_path: Path) -> None:
    assert main(["+experiment=insight", "rounds=3"]) == 0
    ((config, run_dir),) = stage.runs
    assert config == load_config(["+experiment=insight", "rounds=3"])
    assert run_dir.parent.parent == tmp_path / "runs"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", run_dir.parent.name)
    assert re.fullmatch(r"\d\d-\d\d-\d\d-insight", run_dir.name)
    assert list(run_dir.iterdir()) == []  # no .hydra, no log file of Hydra's
    assert stage.tables == []
    assert not GlobalHydra.instance().is_initialized()


def test_precedence_on_the_command_line(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FED_MOE_EXPERIMENT", "scarcity")
    monkeypatch.setenv("FED_MOE_MODEL", "moe")
    monkeypatch.setenv("FED_MOE_ROUNDS", "3")
    assert main(["experiment=insight", "rounds=4"]) == 0
    ((config, _),) = stage.runs
    assert (config.strategy.name, config.model.name, config.rounds) == ("insight", "moe", 4)


def test_load_config_works_inside_a_running_job(stage: Stage) -> None:
    inner: list[ExperimentConfig] = []

    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        inner.append(load_config(["model=moe"], rounds=7))
        assert GlobalHydra.instance().is_initialized()
        return {}

    stage.run = run
    assert main(["rounds=2"]) == 0
    assert (inner[0].model.name, inner[0].rounds) == ("moe", 7)


def seen_by_jobs(stage: Stage, act: Callable[[], object]) -> list[dict[str, Any]]:
    """What each job that `act` starts finds in Hydra's own node."""
    nodes: list[dict[str, Any]] = []

    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        node = OmegaConf.to_container(HydraConfig.instance().cfg or OmegaConf.create())
        assert isinstance(node, dict)
        nodes.append({str(key): value for key, value in node.items()})
        return {}

    stage.run = run
    act()
    return nodes


@pytest.mark.parametrize(
    "words",
    [
        ["+experiment=scarcity", "hydra.run.dir=here", "rounds=2"],
        ["hydra.run.dir=here", "hydra.job.name=mine", "hydra.mode=RUN"],
        ["--multirun", "rounds=1,2", "hydra.sweep.dir=here"],
        ["hydra.mode=MULTIRUN", "rounds=1,2", "hydra.sweep.dir=here"],
    ],
    ids=" ".join,
)
def test_a_job_finds_what_hydras_own_main_would_have_given_it(
    words: list[str], stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = seen_by_jobs(stage, lambda: main(words))
    monkeypatch.setattr("fedmoe.simulate.only_runs", lambda options: False)
    theirs = seen_by_jobs(stage, lambda: main(words))
    assert len(ours) >= 1
    for node in (*ours, *theirs):
        # Two ways to say which mode it is; what counts is hydra.mode, which stays.
        overrides = node["hydra"]["overrides"]["hydra"]
        overrides[:] = [word for word in overrides if not word.startswith("hydra.mode=")]
    assert ours == theirs


def test_what_was_composed_for_the_check_serves_one_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[Any] = []
    compose = Loader._load_configuration_impl

    def counted(*args: Any, **keywords: Any) -> Any:
        composed.append(args)
        return compose(*args, **keywords)

    monkeypatch.setattr(Loader, "_load_configuration_impl", counted)
    JobRuntime.instance().set("name", "somebody else's")
    assert main(["rounds=2", "name=job-${hydra:job.name}"]) == 0
    assert len(composed) == 1
    assert stage.runs[0][0].name == "job-simulate"
    loader = Composer().loader
    loader.offer(["rounds=2"], OmegaConf.create({"rounds": 7}))
    first, second = (
        loader.load_configuration("config", ["rounds=2"], RunMode.RUN) for _ in range(2)
    )
    assert (first.rounds, second.rounds) == (7, 2)


def test_flags_may_stand_among_words(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model=moe", "--cfg", "job", "model.router.top_k=1", "--package", "model"]) == 0
    assert "top_k: 1" in capsys.readouterr().out
    assert stage.runs == []


def test_a_directory_of_yaml_files_of_ones_own(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "big.yaml").write_text("name: mlp\nhidden: [512, 512]\n")
    assert main(["--config-dir", "mine", "model=big"]) == 0
    assert getattr(stage.runs[0][0].model, "hidden", None) == (512, 512)


@pytest.mark.parametrize("content", ["rounds: 3\n", "defaults:\n- override /model: moe\n"])
def test_an_experiment_without_its_header_is_told_so(
    content: str, stage: Stage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine" / "experiment" / "own.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    line = (
        f"fedmoe: error: +experiment=own: {file} has no line '# @package _global_' at its top; "
        "add it\n"
    )
    for words in (["+experiment=own"], ["--multirun", "experiment=scarcity,own"]):
        assert main(["--config-dir", "mine", *words]) == 2
        assert capsys.readouterr().err == line
    file.write_text(f"# @package _global_\n{content}")
    assert main(["--config-dir", "mine", "experiment=own"]) == 0
    assert len(stage.runs) == 1


def test_the_network_calls_of_others_are_off_unless_asked_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "1")
    for name in ("FLWR_DISABLE_UPDATE_CHECK", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "x")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    assert main([]) == 0
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "1"
    assert os.environ["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_help_explains_every_group_and_lists_every_option(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_TYPO", "1")  # help must be had in spite of it
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    explained, _, options = text.partition("Options of each group")
    for group in sorted(path for path in CONF.iterdir() if any(path.glob("*.yaml"))):
        assert re.search(rf"^  {group.name} +\w+ .{{15,}}", explained, re.MULTILINE), group.name
        listed = re.search(rf"^{group.name}: (.*)$", options, re.MULTILINE)
        assert listed is not None
        assert listed[1].split(", ") == sorted(path.stem for path in group.glob("*.yaml"))
    examples = re.findall(r"^  fedmoe-simulate.*$", explained, re.MULTILINE)
    assert len(examples) == 6
    assert sum("--multirun" in example for example in examples) == 1


def test_every_example_of_the_help_is_valid(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["--help"])
    for example in re.findall(r"^  fedmoe-simulate(.*)$", capsys.readouterr().out, re.MULTILINE):
        assert main(example.replace("0,1,2", "0").split()) == 0, example
    assert len(stage.runs) == 4 + 3


# ------------------------------------------------------------------- errors, alone


@pytest.mark.parametrize(
    "arguments",
    [
        ["training.batchsize=64"],
        ["training.batchsize=64", "--cfg", "job"],
        ["training.batchsize=64", "--info", "config"],
        ["training.batchsize=64", "--multirun"],
        ["model=mope"],
        ["training.batch_size=[1"],
        ["training.learning_rate=-1"],
        ["rounds=1,2"],
        ["--multirun", "--cfg", "job"],
        ["--config-dir", "nowhere"],
        ["--config-name", "nothing"],
    ],
    ids=" ".join,
)
def test_a_wrong_configuration_is_one_line_and_exit_code_2(
    arguments: list[str], stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fedmoe: error: ")
    assert err.count("\n") == 1
    assert stage.runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_launcher_that_is_not_installed_is_told_with_its_extra(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        metadata.version("hydra-ray-launcher")
    except metadata.PackageNotFoundError:
        pass
    else:
        pytest.skip("it is installed here")
    assert main(["-m", "hydra/launcher=ray", "seed=1,2"]) == 2
    line = "hydra/launcher=ray: not installed: pip install 'fedmoe[sweeps]'"
    assert capsys.readouterr().err == f"fedmoe: error: {line}\n"
    assert stage.runs == []


@pytest.mark.parametrize(
    ("error", "code"), [(RunError("no usable reply"), 1), (DataError("no\nfile"), 2)]
)
def test_a_failed_run_is_one_line_and_its_exit_code(
    error: Exception, code: int, stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        raise error

    stage.run = run
    assert main([]) == code
    assert capsys.readouterr().err == f"fedmoe: error: {str(error).replace(chr(10), ' ')}\n"


def test_a_defect_shows_its_traceback(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        raise ZeroDivisionError("a defect")

    stage.run = run
    assert main([]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "ZeroDivisionError: a defect" in err


def test_hydra_full_error_shows_tracebacks_and_is_left_as_it_was(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["model=mope"])
    assert "HYDRA_FULL_ERROR" not in os.environ
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["model=mope"]) == 2
    assert "Traceback" in capsys.readouterr().err
    assert os.environ["HYDRA_FULL_ERROR"] == "1"


def test_an_interrupt_is_one_line_and_130(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    stage.run = run
    assert main([]) == 130
    assert capsys.readouterr().err == "fedmoe: interrupted\n"


def test_an_unknown_flag_ends_with_2(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--nonsense"]) == 2
    assert "unrecognized arguments: --nonsense" in capsys.readouterr().err


# --------------------------------------------------------------------------- sweeps


def test_a_sweep_runs_every_job_in_one_directory_and_ends_with_a_table(
    stage: Stage, tmp_path: Path
) -> None:
    assert main(["--multirun", "strategy=local,fedavg", "training.epochs=1,3", "rounds=2"]) == 0
    made = [(config.strategy.name, config.training.epochs) for config, _ in stage.runs]
    assert made == [("local", 1), ("local", 3), ("fedavg", 1), ("fedavg", 3)]
    (sweep_dir,) = stage.tables
    assert {run_dir.parent for _, run_dir in stage.runs} == {sweep_dir}
    assert re.fullmatch(r"\d\d-\d\d-\d\d-fedavg-sweep", sweep_dir.name)
    assert sweep_dir.parent.parent == tmp_path / "runs"
    assert stage.runs[1][1].name == "1-strategy-local+epochs-3"  # not the fixed rounds


def test_the_environment_takes_part_in_a_sweep(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FED_MOE_STRATEGY", "insight")
    monkeypatch.setenv("FED_MOE_ROUNDS", "9")
    monkeypatch.setenv("FED_MOE_DATA__ON_MISSING", "synthetic")
    assert main(["--multirun", "strategy=local,fedavg", "rounds=1,2"]) == 0
    made = [(c.strategy.name, c.rounds, c.data.on_missing) for c, _ in stage.runs]
    assert made == [(s, r, "synthetic") for s in ("local", "fedavg") for r in (1, 2)]
    assert stage.runs[0][1].name == "0-rounds-1+strategy-local"


def test_a_wrong_value_anywhere_in_a_sweep_is_refused_before_any_job(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["--multirun", "rounds=1,2", "training.learning_rate=0.1,0.2,-1"]) == 2
    assert "training.learning_rate=-1: must be greater than 0" in capsys.readouterr().err
    assert main(["--multirun", "model=mlp,mope"]) == 2
    assert "no such option; did you mean moe?" in capsys.readouterr().err
    monkeypatch.setenv("FED_MOE_TRAINING__EPOCHS", "0")
    assert main(["--multirun", "rounds=1,2"]) == 2
    assert "FED_MOE_TRAINING__EPOCHS=0: must be" in capsys.readouterr().err
    assert (stage.runs, stage.tables) == ([], [])


def test_the_other_jobs_of_a_sweep_run_after_a_failure(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        if config.rounds == 2:
            raise RunError("no usable reply")
        return {}

    stage.run = run
    assert main(["--multirun", "rounds=1,2,3"]) == 1
    assert [config.rounds for config, _ in stage.runs] == [1, 2, 3]
    assert len(stage.tables) == 1
    err = capsys.readouterr().err
    assert "fedmoe: error: job 1: no usable reply\n" in err
    assert err.endswith("fedmoe: error: a job of the sweep failed; see above\n")
    assert "Traceback" not in err


def test_an_interrupted_sweep_still_prints_its_table(stage: Stage) -> None:
    def run(config: ExperimentConfig, run_dir: Path) -> dict[str, Any]:
        raise KeyboardInterrupt

    stage.run = run
    assert main(["--multirun", "rounds=1,2"]) == 130
    assert (len(stage.runs), len(stage.tables)) == (1, 1)


def test_a_table_that_cannot_be_printed_fails_the_command(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def print_sweep(sweep_dir: Path) -> None:
        raise RunError("no results")

    monkeypatch.setattr(sys.modules["fedmoe.report"], "print_sweep", print_sweep)
    assert main(["--multirun", "rounds=1"]) == 1
    assert capsys.readouterr().err == "fedmoe: error: no results\n"


def test_a_sweep_of_resumed_runs_has_no_table_of_its_own(stage: Stage, tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / f"run{number}").mkdir()
        (tmp_path / f"run{number}" / "config.json").write_text(to_json(load_config()))
    assert main(["--multirun", "resume=run1,run2", "hydra.sweep.dir=here"]) == 0
    assert [config.resume for config, _ in stage.runs] == [
        str(tmp_path / "run1"), str(tmp_path / "run2"),
    ]  # fmt: skip
    assert stage.tables == []


def test_a_worker_elsewhere_writes_to_the_same_directory(stage: Stage, tmp_path: Path) -> None:
    (node,) = seen_by_jobs(stage, lambda: main(["--multirun", "hydra.sweep.dir=out here"]))
    assert node["hydra"]["sweep"]["dir"] == str(tmp_path / "out here")


def test_a_killed_worker_is_one_line(
    stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def launch(*_: object, **__: object) -> None:
        raise BrokenProcessPool("a long story")

    plugins = Plugins.instance().class_name_to_class
    launcher = plugins["hydra._internal.core_plugins.basic_launcher.BasicLauncher"]
    monkeypatch.setattr(launcher, "launch", launch)
    assert main(["--multirun", "rounds=1,2"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fedmoe: error: a worker process of the sweep was killed")
    assert err.count("\n") == 1


def test_a_sweep_may_come_from_a_configuration(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "grid.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {rounds: '1,2'}}}\n"
    )
    assert main(["--config-dir", "mine", "experiment=grid"]) == 0
    assert [config.rounds for config, _ in stage.runs] == [1, 2]
    assert len(stage.tables) == 1


def test_a_job_may_use_its_number(stage: Stage) -> None:
    number = "${hydra:job.num}"
    assert main(["--multirun", f"name=run-{number}", f"seed={number}", "rounds=5,6"]) == 0
    made = [(config.name, config.seed, config.rounds) for config, _ in stage.runs]
    assert made == [("run-0", 0, 5), ("run-1", 1, 6)]
    assert len({run_dir.parent for _, run_dir in stage.runs}) == 1


def test_a_sweeper_gets_the_objective(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"mode": "RUN", "overrides": {"task": []}, "runtime": {"output_dir": "x"}}
    monkeypatch.setattr(HydraConfig.instance(), "cfg", OmegaConf.create({"hydra": node}))
    config = OmegaConf.create(json.loads(to_json(load_config(rounds=4))))
    assert Job()(config) == 4.0
    stage.run = lambda config, run_dir: {}
    assert Job()(config) is None


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("", "3"),
        ("training.learning_rate-0.1+seed-1", "3-learning_rate-0.1+seed-1"),
        ("+experiment-insight", "3-experiment-insight"),
        ("data.path-/some/a b.csv", "3-path-_some_a_b.csv"),
        ("model.hidden-[64,32]", "3-hidden-_64_32"),
        ("name-" + "x" * 200, "3-name-" + "x" * 55),
        ("rounds-../..", "3-rounds"),
        ("name-é", "3-name"),
    ],
)
def test_the_name_of_a_job_is_short_and_safe(overrides: str, name: str) -> None:
    assert job_dir(3, overrides) == name


def test_what_another_launcher_pickles_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Job(full=True))).error is None
    assert pickle.loads(pickle.dumps(SweepJobError(2))).exit_code == 2


# ------------------------------------------------------------------ as a process


def test_as_a_process(tmp_path: Path) -> None:
    def command(*words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-W", "error", "-m", "fedmoe.simulate", *words]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(PREFIX)}
        environment["FED_MOE_TRAINING__BATCH_SIZE"] = "64"
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)

    good = command("--cfg", "job", "-p", "training", "training.epochs=7")
    assert (good.returncode, good.stderr) == (0, "")
    assert "batch_size: 64" in good.stdout
    assert "epochs: 7" in good.stdout
    bad = command("training.batch=1")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("fedmoe: error: training.batch=1: no such key; did you mean")
    assert list(tmp_path.iterdir()) == []
