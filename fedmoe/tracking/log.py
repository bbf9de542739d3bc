"""Logging for the length of one run: short on the console, complete in the run directory.

Our loggers are named `fedmoe.module.Class`. The handlers hang on the root logger, so that what
a user's own strategy or model logs is kept too.
"""

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from fedmoe.errors import RunError

if TYPE_CHECKING:
    from fedmoe.schema import TrackingConfig

    # Generic for the type checker only.
    _StreamHandler = logging.StreamHandler[TextIO]
else:
    _StreamHandler = logging.StreamHandler

_OURS = "fedmoe"
_FLOWER = "flwr"
_DATE = "%Y-%m-%d %H:%M:%S"


@contextmanager
def configure_logging(config: "TrackingConfig", log_file: Path) -> Iterator[None]:
    """Log to the console and to a file until the context ends, then leave no trace.

    Console lines read `HH:MM:SS message` and go to standard error as it is at that moment,
    which lets a progress bar print them above itself. File lines read
    `YYYY-MM-DD HH:MM:SS - logger - LEVEL - message`, or are JSON objects with `time`, `level`,
    `logger`, `message` and, for an exception, `exception`. Flower's messages go to the file,
    its warnings to the console as well.

    Args:
        config: `log_level` and `log_format` are read.
        log_file: appended to, so that a continued run keeps one log.

    Raises:
        RunError: if the file cannot be opened.
    """
    handlers = [_console_handler(config), _file_handler(config, log_file)]
    root, ours, flower = (logging.getLogger(name) for name in (None, _OURS, _FLOWER))
    displaced = [handler for handler in root.handlers if _writes_to_console(handler)]
    flower_filter = _FlowerFilter(handlers)
    level_before = ours.level
    ours.setLevel(config.log_level)
    root.handlers[:] = [handler for handler in root.handlers if handler not in displaced]
    root.handlers.extend(handlers)
    flower.addFilter(flower_filter)
    try:
        yield
    finally:
        flower.removeFilter(flower_filter)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.handlers.extend(displaced)
        ours.setLevel(level_before)


class _FlowerFilter(logging.Filter):
    """Hands Flower's records to our handlers and to nobody else.

    Flower's logger gets a console handler of its own when `flwr` is imported, which may be
    after logging was configured, and its records also reach the root's handlers. A filter on
    the logger comes before both.
    """

    def __init__(self, handlers: list[logging.Handler]) -> None:
        super().__init__()
        self._handlers = handlers

    def filter(self, record: logging.LogRecord) -> bool:
        # Flower lays its messages out with tabs, line breaks and empty records.
        record.msg = " ".join(record.getMessage().split())
        record.args = None
        if record.msg:
            for handler in self._handlers:
                if record.levelno >= handler.level:
                    handler.handle(record)
        return False


# `_LOG.info(..., extra=FILE_ONLY)`: for the file, since the console has its progress lines.
FILE_ONLY = {"file_only": True}


class _ConsoleHandler(_StreamHandler):
    """Writes to whatever `sys.stderr` is when a record comes."""

    def emit(self, record: logging.LogRecord) -> None:
        # A progress bar replaces sys.stderr while it is shown.
        self.stream = sys.stderr
        super().emit(record)

    def filter(self, record: logging.LogRecord) -> bool:
        chatter = record.name.split(".")[0] == _FLOWER and record.levelno < logging.WARNING
        quiet = chatter or getattr(record, "file_only", False)
        return not quiet and bool(super().filter(record))


class _ConsoleFormatter(logging.Formatter):
    """`HH:MM:SS message`; an exception is named, its traceback left to the file."""

    def format(self, record: logging.LogRecord) -> str:
        clock = self.formatTime(record, "%H:%M:%S")
        mark = f"{record.levelname} " if record.levelno >= logging.WARNING else ""
        cause = record.exc_info[1] if record.exc_info else None
        because = f" ({type(cause).__name__}: {cause})" if cause else ""
        return f"{clock} {mark}{record.getMessage()}{because}"


class _TextFormatter(logging.Formatter):
    """One record a line; further lines are indented, so that none can pass for a record."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s - %(name)s - %(levelname)s - %(message)s", _DATE)

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).replace("\n", "\n    ")


class _JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        zone = time.strftime("%z", time.localtime(record.created))
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + zone,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _console_handler(config: "TrackingConfig") -> logging.Handler:
    handler = _ConsoleHandler()
    handler.setLevel(config.log_level)
    handler.setFormatter(_ConsoleFormatter())
    return handler


def _file_handler(config: "TrackingConfig", log_file: Path) -> logging.Handler:
    try:
        handler = logging.FileHandler(log_file, encoding="utf-8")
    except OSError as error:
        raise RunError(f"cannot write the log {log_file}: {error}") from error
    handler.setLevel(config.log_level)
    handler.setFormatter(_JsonFormatter() if config.log_format == "json" else _TextFormatter())
    return handler


def _writes_to_console(handler: logging.Handler) -> bool:
    """Whether it is a plain console handler, such as Hydra's: each line would come twice."""
    return type(handler) is logging.StreamHandler and handler.stream in (
        sys.stdout,
        sys.stderr,
        sys.__stdout__,
        sys.__stderr__,
    )
