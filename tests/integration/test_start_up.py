"""What the smallest run costs beside its work, in counts: times differ from machine to machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# Reports as the process ends, when all that a run imports has been imported.
_PROBE = """
import atexit, gc, json, sys
from fedmoe.configuration.loader import Loader
from fedmoe.simulate import command

composed, compose = [], Loader._load_configuration_impl

def counted(*args, **keywords):
    composed.append(args)
    return compose(*args, **keywords)

Loader._load_configuration_impl = counted

@atexit.register
def report():
    found = {
        "modules": sorted(sys.modules),
        "composed": len(composed),
        "collections": gc.get_stats()[0]["collections"],
        "frozen": gc.get_freeze_count(),
    }
    with open("probe.json", "w") as stream:
        json.dump(found, stream)

command()
"""
# The compiler stack, a cluster, tables, statistics: half a second to four seconds each.
HEAVY = (
    "IPython", "joblib", "matplotlib.pyplot", "mlxtend", "pandas", "pyarrow", "ray", "scipy",
    "sklearn", "sympy", "tensorboard", "torch._dynamo", "torch._inductor",
    "torchvision",
)  # fmt: skip


def probe(cwd: Path, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE, *words, "hydra.run.dir=run"],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if not k.startswith("FED_MOE_")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads((cwd / "probe.json").read_text())
    return found


@pytest.mark.parametrize("words", [["+experiment=scarcity"], ["rounds=1"]], ids=" ".join)
def test_a_run_imports_nothing_heavy_and_composes_once(words: list[str], tmp_path: Path) -> None:
    found = probe(tmp_path, *words)
    modules = found["modules"]
    assert "torch" in modules  # the probe sees what a run imports
    heavy = {m for m in modules for h in HEAVY if m == h or m.startswith(f"{h}.")}
    assert heavy == set()
    assert found["composed"] == 1
    assert {"learning.png", "partition.png", "summary.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_without_plots_matplotlib_stays_out_and_little_is_collected(tmp_path: Path) -> None:
    found = probe(tmp_path, "+experiment=scarcity", "tracking.plots=false")
    assert not [m for m in found["modules"] if m.partition(".")[0] in ("matplotlib", "PIL")]
    assert found["collections"] < 200  # of the youngest; importing torch and flwr alone makes 440
    assert found["frozen"] > 100_000


_LIGHT = """
import json, sys
import fedmoe
dir(fedmoe)
packages = lambda: {name.partition(".")[0] for name in sys.modules}
bare = packages()
from fedmoe import load_config
print(json.dumps([sorted(bare), sorted(packages())]))
"""


def test_the_names_of_the_package_are_imported_when_they_are_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=True
    )
    bare, composing = json.loads(done.stdout)
    assert not {"flwr", "hydra", "numpy", "pydantic", "torch"} & set(bare)
    assert "hydra" in composing
    assert not {"flwr", "torch"} & set(composing)
