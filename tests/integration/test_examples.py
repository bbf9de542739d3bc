"""The examples run as their first lines say."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted(Path(__file__).parents[2].glob("examples/*.py"))


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
