"""Structured logs on standard error: one JSON object a line, without local variables, for those may hold secrets."""

import json
import logging
import re
import sys
from typing import Final, Literal

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

Level = Literal["debug", "info", "warning", "error"]

_ORDER: Final[tuple[Level, ...]] = ("debug", "info", "warning", "error")
_encoder: Final = msgspec.json.Encoder(enc_hook=repr)
# PostgreSQL shows the row or the value that it refuses, and a row may hold a reason.
_DATA: Final = re.compile(r"^\s*(DETAIL|CONTEXT|PARAMETERS?|QUERY|STATEMENT): .*\n?", re.MULTILINE)


# The levels that this process writes; until it is configured, all of them.
_heard: Final[set[Level]] = set(_ORDER)


def configure_logs(level: Level = "info") -> None:
    """Set up logging of this process: lines of *level* and worse."""
    _heard.clear()
    _heard.update(_ORDER[_ORDER.index(level) :])
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            # The plain traceback: frames and messages, never the values of variables.
            structlog.processors.format_exc_info,
            _without_data,
            _line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Looked up for each line, so that whoever replaces standard error gets it.
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


class _ToStructlog(logging.Handler):
    """Send what libraries log the way our own logs go."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)


def send_logs_to_structlog() -> None:
    """Give the logs of libraries the form of ours, warnings and worse."""
    logging.root.handlers = [_ToStructlog()]
    logging.root.setLevel(logging.WARNING)


def hears(level: Level) -> bool:
    """Tell whether lines of *level* are written."""
    return level in _heard


def write_line(line: msgspec.Struct) -> None:
    """Write a line whose members are known: what a busy server says of each request costs a tenth of what others do."""
    sys.stderr.write(_encoder.encode(line).decode() + "\n")


def _without_data(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    for name in ("exception", "error"):
        if isinstance(event.get(name), str):
            event[name] = _DATA.sub("", event[name])
    return event


def _line(_: WrappedLogger, __: str, event: EventDict) -> str:
    try:
        return _encoder.encode(event).decode()
    except UnicodeEncodeError:
        # Half of a surrogate pair, which somebody sent: slower, but nothing is too odd to be told.
        return json.dumps(event, default=repr)
