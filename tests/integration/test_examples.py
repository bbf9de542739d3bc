"""The examples run as their first lines say."""

import ast
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOK = FOLDER / "notebook.py"  # takes no words: it is opened, or run as it is
EXAMPLES = sorted({*FOLDER.glob("*.py")} - {NOTEBOOK})


def command_of(example: Path) -> list[str]:
    """The words after the file's name in its docstring."""
    text = example.read_text().split('"""')[1].replace("\\\n", " ")
    command = text[text.index(f"python examples/{example.name}") :]
    return shlex.split(command)[2:]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    words = [*command_of(example), "rounds=3", "tracking.plots=false", "hydra.run.dir=out"]
    subprocess.run([sys.executable, str(example), *words], cwd=tmp_path, check=True, timeout=120)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["final"]["global"]["accuracy"]["mean"] > 0.15


def test_the_notebook_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(NOTEBOOK)], cwd=tmp_path, check=True, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    runs = sorted(tmp_path.glob("runs/*/*"))
    found = {path.name.rpartition("-")[2]: path for path in runs}
    assert len(runs) == len(found) == 3
    rounds = {"fedavg": 15, "insight": 5, "fedprox": 5}
    for name, path in found.items():
        summary = json.loads((path / "summary.json").read_text())
        assert (summary["status"], summary["rounds"]) == ("completed", rounds[name])
        which = "personalised" if name == "insight" else "global"
        assert summary["final"][which]["accuracy"]["mean"] > 0.8
    shown = done.stdout.splitlines()
    accuracy = {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in shown
        if line.startswith(("mixture", "expert 0", "client 0"))
    }
    assert accuracy["mixture"] > accuracy["expert 0"] > 0.1  # one of three knows less than all
    assert accuracy["client 0"] > 0.8
    assert any(line.startswith("25 insights") for line in shown)
    assert "guidance for client 3: ['prototypes', 'prototype_weight']" in shown


def test_the_notebook_trains_in_ten_lines_which_are_the_readmes() -> None:
    cell = NOTEBOOK.read_text().split("# %%")[2].partition("\n")[2]
    assert len([line for line in cell.splitlines() if line.strip()]) == 10
    section = (FOLDER.parent / "README.md").read_text().split("## In a notebook")[1]
    shown = section.split("```python")[1].split("```")[0]
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse(cell))
