"""An environment for each peer, made once from its pinned requirements.

They lie in `benchmarks/.venvs`, which git ignores. PyTorch is pinned without saying which build:
what pip finds first is taken.
"""

import hashlib
import re
import subprocess
import sys
import venv
from pathlib import Path

PEERS = ("blazefl", "pfl", "fluke")
HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".venvs"


def environment(peer: str) -> Path:
    """The peer's Python, after making its environment where there is none or an outdated one.

    Raises:
        RuntimeError: pip could not install something; its last line.
    """
    requirements = HERE / "peers" / peer / "requirements.txt"
    folder = ENVIRONMENTS / peer
    python, stamp = folder / "bin" / "python", folder / "requirements.sha256"
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    command: list[str | Path] = [python, "-m", "pip", "install", "--quiet", "-r", requirements]
    if peer == "blazefl":
        command.append("--ignore-requires-python")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise RuntimeError(f"no environment for {peer}: {lines[-1]}")
    if peer == "blazefl" and sys.version_info < (3, 14):
        for path in folder.glob("lib/python*/site-packages/blazefl/**/*.py"):
            path.write_text(for_older_python(path.read_text()))
    stamp.write_text(wanted)
    return python


def for_older_python(source: str) -> str:
    """A module written for Python 3.14, so that 3.11 takes it: only its types are touched.

    `def f[T](x: T)` loses its `[T]`, and no annotation is evaluated.
    """
    plain = re.sub(r"^(\s*(?:def|class) \w+)\[\w+\]", r"\1", source, flags=re.MULTILINE)
    return f"from __future__ import annotations\n{plain}"
