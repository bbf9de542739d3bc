import io
import json
import logging
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

from fedmoe.errors import RunError
from fedmoe.schema import TrackingConfig
from fedmoe.tracking.log import configure_logging

Capture = pytest.CaptureFixture[str]
OURS = logging.getLogger("fedmoe.rounds.Loop")
FLOWER = logging.getLogger("flwr")


def config(**changes: Any) -> TrackingConfig:
    values: dict[str, Any] = {
        "progress": "none",
        "log_format": "text",
        "log_level": "INFO",
        "plots": False,
        "checkpoint_every": 0,
        "profile": False,
    }
    return TrackingConfig(**(values | changes))


def test_console_is_short_and_file_is_complete(tmp_path: Path, capsys: Capture) -> None:
    with configure_logging(config(), tmp_path / "run.log"):
        OURS.info("round %d", 3)
        OURS.warning("client 7 failed")
        OURS.debug("unseen")
    clock = r"\d\d:\d\d:\d\d"
    assert re.fullmatch(
        f"{clock} round 3\n{clock} WARNING client 7 failed\n", capsys.readouterr().err
    )
    stamp = r"\d{4}-\d\d-\d\d " + clock
    assert re.fullmatch(
        f"{stamp} - fedmoe.rounds.Loop - INFO - round 3\n"
        f"{stamp} - fedmoe.rounds.Loop - WARNING - client 7 failed\n",
        (tmp_path / "run.log").read_text(),
    )


def test_json_lines(tmp_path: Path, capsys: Capture) -> None:
    with configure_logging(config(log_format="json"), tmp_path / "run.log"):
        OURS.info('say "%s"', "ü\n")
        try:
            raise ValueError("bad")
        except ValueError:
            OURS.exception("went wrong")
    first, second = map(json.loads, (tmp_path / "run.log").read_text().splitlines())
    assert first.keys() == {"time", "level", "logger", "message"}
    assert (first["level"], first["logger"]) == ("INFO", "fedmoe.rounds.Loop")
    assert first["message"] == 'say "ü\n"'
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", first["time"])
    assert second["exception"].splitlines()[-1] == "ValueError: bad"
    assert capsys.readouterr().err.endswith("ERROR went wrong (ValueError: bad)\n")


def test_a_message_cannot_forge_a_record(tmp_path: Path, capsys: Capture) -> None:
    with configure_logging(config(), tmp_path / "run.log"):
        OURS.info("reply\n2026-01-01 00:00:00 - fedmoe - INFO - all is well")
    assert (tmp_path / "run.log").read_text().splitlines()[1].startswith("    2026-01-01")


def test_flower_goes_to_the_file_and_its_warnings_to_the_console_once(
    tmp_path: Path, capsys: Capture
) -> None:
    own = io.StringIO()
    handler = logging.StreamHandler(own)
    level = FLOWER.level
    FLOWER.setLevel(logging.DEBUG)
    with configure_logging(config(), tmp_path / "run.log"):
        # Flower adds its console handler when it is imported, perhaps as late as here.
        FLOWER.addHandler(handler)
        FLOWER.info("\t└──> %s", "summary")
        FLOWER.info("")
        FLOWER.debug("unseen")
        FLOWER.warning("DEPRECATED:\n      %d things", 2)
    FLOWER.warning("afterwards")
    FLOWER.removeHandler(handler)
    FLOWER.setLevel(level)
    written = (tmp_path / "run.log").read_text().splitlines()
    assert [line.partition(" - ")[2] for line in written] == [
        "flwr - INFO - └──> summary",
        "flwr - WARNING - DEPRECATED: 2 things",
    ]
    assert capsys.readouterr().err[9:] == "WARNING DEPRECATED: 2 things\n"
    assert own.getvalue() == "afterwards\n"


def test_flower_still_logs_through_the_logger_that_is_caught() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from flwr.supercore.logger import FLOWER_LOGGER
    assert FLOWER_LOGGER is FLOWER


def test_runs_in_one_process_leave_no_trace(tmp_path: Path, capsys: Capture) -> None:
    loggers = [logging.getLogger(name) for name in (None, "fedmoe", "flwr")]

    def state() -> list[Any]:
        return [(each.level, list(each.handlers), list(each.filters)) for each in loggers]

    loggers[1].setLevel(logging.NOTSET)
    before = state()
    for number in range(3):
        with configure_logging(config(), tmp_path / f"{number}.log"):
            OURS.info("run %d", number)
    with pytest.raises(KeyboardInterrupt), configure_logging(config(), tmp_path / "3.log"):
        raise KeyboardInterrupt
    assert state() == before
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == [
        "run 0",
        "run 1",
        "run 2",
    ]
    assert (tmp_path / "1.log").read_text().count("\n") == 1


def test_a_console_handler_of_hydra_does_not_repeat_our_lines(
    tmp_path: Path, capsys: Capture
) -> None:
    root = logging.getLogger()
    handler = logging.StreamHandler(sys.stderr)
    root.addHandler(handler)
    try:
        with configure_logging(config(), tmp_path / "run.log"):
            OURS.warning("once")
        assert handler in root.handlers
    finally:
        root.removeHandler(handler)
    assert capsys.readouterr().err.count("once") == 1


def test_what_a_users_own_code_logs_is_kept(tmp_path: Path, capsys: Capture) -> None:
    with configure_logging(config(), tmp_path / "run.log"):
        logging.getLogger("my_strategy").warning("hello")
    assert "my_strategy - WARNING - hello" in (tmp_path / "run.log").read_text()


def test_a_continued_run_keeps_its_log(tmp_path: Path, capsys: Capture) -> None:
    for _ in range(2):
        with configure_logging(config(), tmp_path / "run.log"):
            OURS.info("line")
    assert (tmp_path / "run.log").read_text().count("line") == 2


def test_log_that_cannot_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(RunError, match="cannot write the log"),
        configure_logging(config(), tmp_path / "absent" / "run.log"),
    ):
        pass


def test_importing_tracking_is_light() -> None:
    heavy = ("matplotlib", "torch", "sklearn", "hydra", "flwr", "rich", "pydantic")
    program = (
        "import sys, fedmoe.tracking, fedmoe.report\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")
