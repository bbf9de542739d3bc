"""The namespace of the offline tests keeps what it promises."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from offline import only_loopback, reason_against, skip_if_impossible

PROBE = """
import json, os, socket
def outcome(address):
    try:
        socket.create_connection(address, timeout=5).close()
    except OSError as error:
        return type(error).__name__, error.errno
    return "connected"
with socket.create_server(("127.0.0.1", 0)) as server:
    inside = outcome(server.getsockname())
print(json.dumps({
    "interfaces": [name for _, name in socket.if_nameindex()], "inside": inside,
    "outside": outcome(("192.0.2.1", 80)), "pid": os.getpid(),
}))
"""


def test_loopback_works_and_nothing_else_does() -> None:
    skip_if_impossible()
    process = subprocess.Popen(
        only_loopback([sys.executable, "-c", PROBE]), stdout=subprocess.PIPE, text=True
    )
    said, _ = process.communicate(timeout=60)
    found = json.loads(said)
    assert set(found["interfaces"]) <= {"lo", *IDLE}
    assert "lo" in found["interfaces"]
    assert found["inside"] == "connected"
    assert found["outside"] == ["OSError", 101]  # the network is unreachable
    assert found["pid"] == process.pid
    assert process.returncode == 0


# What some kernels put into every new namespace; they are down, and lead nowhere.
IDLE = {"tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"}


def test_signals_and_exit_codes_pass() -> None:
    skip_if_impossible()
    command = only_loopback([sys.executable, "-c", "input('up')"])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
    ran = subprocess.run(only_loopback([sys.executable, "-c", "raise SystemExit(7)"]), check=False)
    assert ran.returncode == 7


def test_where_it_is_not_allowed_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = tmp_path / "unshare"
    refuses.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    refuses.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert reason_against() == "unshare failed: Operation not permitted"
    with pytest.raises(pytest.skip.Exception, match="privileges: unshare failed: Operation not"):
        skip_if_impossible()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert reason_against() == "there is no unshare(1)"
