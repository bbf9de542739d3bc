import io
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tracking_records import parts, summary

import fedmoe
from fedmoe.tracking.summary import git_commit, print_summary, statistics, versions


@pytest.mark.parametrize("clients", [1, 10, 11, 57])
@pytest.mark.parametrize("worst", ["lowest", "highest"])
def test_statistics_against_loops(clients: int, worst: str) -> None:
    rng = np.random.default_rng(clients)
    values, weights = rng.normal(size=clients), rng.integers(1, 50, size=clients)
    pooled = [v for v, w in zip(values, weights, strict=True) for _ in range(w)]
    ordered = sorted(values, reverse=worst == "highest")
    worst_count = math.ceil(clients / 10)

    found = statistics(values, weights, "highest" if worst == "highest" else "lowest")

    mean = sum(pooled) / len(pooled)
    assert found["mean"] == pytest.approx(mean)
    assert found["worst_decile"] == pytest.approx(sum(ordered[:worst_count]) / worst_count)
    assert found["std"] == pytest.approx(
        math.sqrt(sum((v - mean) ** 2 for v in pooled) / len(pooled))
    )


def test_clients_without_samples_do_not_count() -> None:
    values = [0.5, math.nan, 0.9, 0.0] + [0.7] * 8
    weights = [1, 0, 3, 0] + [0] * 8
    assert statistics(values, weights) == pytest.approx(
        {"mean": 0.8, "worst_decile": 0.5, "std": math.sqrt(0.03)}
    )


@pytest.mark.parametrize(
    ("values", "weights"), [([], []), ([math.nan], [0]), ([1, math.nan], [1, 1])]
)
def test_what_cannot_be_summed_up_is_nan(values: list[float], weights: list[float]) -> None:
    assert all(math.isnan(value) for value in statistics(values, weights).values())


def test_a_loss_that_overflowed_stays_visible() -> None:
    found = statistics([1.0, math.inf], [1, 1], "highest")
    assert (found["mean"], found["worst_decile"]) == (math.inf, math.inf)
    assert math.isnan(found["std"])


@pytest.mark.parametrize(
    ("values", "weights", "words"),
    [([1, 2], [1], "one length"), ([1.0], [-1], "at least 0"), ([1.0], [math.inf], "finite")],
)
def test_statistics_refuses_nonsense(values: list[float], weights: list[float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        statistics(values, weights)


def test_versions() -> None:
    found = versions()
    assert list(found) == ["python", "fedmoe", "torch", "flwr", "numpy", "hydra"]
    assert found["numpy"] == np.__version__
    assert found["fedmoe"] == fedmoe.__version__


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work tree with one commit of a package, from which fedmoe seems to be imported."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    package = tmp_path / "fedmoe"
    package.mkdir()
    (package / "__init__.py").write_text("")
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "one"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    monkeypatch.setattr(fedmoe, "__file__", str(package / "__init__.py"))
    return package


def test_git_commit(checkout: Path, capfd: pytest.CaptureFixture[str]) -> None:
    commit = git_commit()
    assert commit is not None
    assert len(commit) == 40
    (checkout.parent / "results.txt").write_text("not the package's business")
    assert git_commit() == commit
    (checkout / "new.py").write_text("")
    assert git_commit() == f"{commit}-dirty"
    (checkout / "new.py").unlink()
    (checkout / "__init__.py").write_text("changed = True")
    assert git_commit() == f"{commit}-dirty"
    assert capfd.readouterr() == ("", "")


def test_an_installed_package_has_no_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = checkout.parent / ".venv" / "site-packages" / "fedmoe" / "__init__.py"
    monkeypatch.setattr(fedmoe, "__file__", str(installed))
    assert git_commit() is None


def test_git_that_hangs_or_is_missing(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedmoe.tracking.summary._GIT_TIMEOUT_SECONDS", 0.2)
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    assert git_commit() is None
    (folder / "git").write_text("#!/bin/sh\n/bin/sleep 20\n/bin/echo abc\n")
    (folder / "git").chmod(0o755)
    assert git_commit() is None  # not abc: it is not waited for


def shown(values: dict[str, object], run_dir: Path) -> str:
    stream = io.StringIO()
    print_summary(values, run_dir, stream)
    return stream.getvalue()


def test_print_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    final = parts("accuracy", {"global": 0.8, "personalised": 0.9})
    text = shown(summary(final), tmp_path / "runs" / "[x]")
    rows = [line.split() for line in text.splitlines() if line.strip()]
    assert rows[0] == ["insight:", "completed", "after", "20", "rounds"]
    assert ["final", "round", "global", "0.800", "0.700", "0.050"] in rows
    assert ["personalised", "0.900", "0.800", "0.050"] in rows
    assert ["best", "(round", "17)", "global", "0.800", "0.700", "0.050"] in rows
    assert ["data", "digits", "(real),", "20", "clients,", "1,797", "samples"] in rows
    assert ["traffic", "up", "1.2", "MB,", "down", "2.5", "kB"] in rows
    assert ["time", "3.20", "s"] in rows
    assert text.splitlines()[-1] == "results  runs/[x]"


def test_print_summary_tells_where_the_time_went(tmp_path: Path) -> None:
    profile = {"train": 0.7, "pack": 0.2956, "guard": 0.0044, "other": 0.0}
    text = shown({**summary(None), "profile": profile}, tmp_path)
    assert "profile  train 70 %, pack 30 %\n" in text
    assert "profile" not in shown(summary(None), tmp_path)


def test_print_summary_tells_what_the_router_did(tmp_path: Path) -> None:
    routing = {
        "importance": [0.6, 0.39, 0.01],
        "dead_experts": 1,
        "importance_entropy": 0.65,
        "necessity": None,
    }
    text = shown({**summary(None), "routing": routing}, tmp_path)
    expected = "router   2 of 3 experts alive, entropy of their shares 0.650, necessity -\n"
    assert expected in text
    text = shown({**summary(None), "routing": {"importance": None}}, tmp_path)
    assert "router   no expert answered\n" in text
    assert "router" not in shown(summary(None), tmp_path)


def test_print_summary_of_samples_that_nobody_has_counted(tmp_path: Path) -> None:
    data = {"name": "sensors", "origin": "real", "clients": 70_000, "samples": None}
    text = shown({**summary(None), "data": data}, tmp_path)
    assert "data     sensors (real), 70,000 clients, samples made on demand\n" in text


def test_print_summary_of_a_path_elsewhere_is_not_wrapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = tmp_path / ("long" * 40)
    text = shown(summary(parts("mse", {"global": 2.0})), folder)
    assert text.splitlines()[-1] == f"results  {folder}"
    assert "test mse" in text


def test_print_summary_of_a_failed_run(tmp_path: Path) -> None:
    text = shown({"name": "a", "status": "failed", "final": None, "reason": "no data"}, tmp_path)
    assert text.startswith("a: failed after 0 rounds\nno round was evaluated\n")
    assert "reason   no data\n" in text
