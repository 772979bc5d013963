"""Logs: one line of JSON an event, on standard error, without what must not be there."""

import json
from collections.abc import Callable

import psycopg
import pytest
import structlog

from jobengine.logs import configure_logs

Read = Callable[[], list[dict[str, object]]]


@pytest.fixture
def logged(capsys: pytest.CaptureFixture[str]) -> Read:
    """Configure the logs, and read what they wrote as objects."""
    configure_logs()

    def read() -> list[dict[str, object]]:
        out, err = capsys.readouterr()
        assert out == ""
        return [json.loads(line) for line in err.splitlines()]

    return read


def test_an_event_is_one_line_with_time_and_level(logged: Read) -> None:
    """Whatever is bound to the context stands in it."""
    with structlog.contextvars.bound_contextvars(trace_id="t1"):
        structlog.get_logger().warning("lease.lost", lease_id="l1", text="two\nlines")

    [event] = logged()
    assert (event["event"], event["level"], event["lease_id"], event["trace_id"]) == (
        "lease.lost",
        "warning",
        "l1",
        "t1",
    )
    assert event["text"] == "two\nlines"
    assert str(event["timestamp"]).endswith("Z")


def test_a_traceback_tells_frames_and_no_variables(logged: Read) -> None:
    """A local variable may be a secret."""
    secret = "made-" + "up"
    try:
        raise ValueError("bad value")  # noqa: TRY301 - there must be a frame with a secret in it
    except ValueError:
        structlog.get_logger().exception("request.failed")

    [event] = logged()
    assert "ValueError: bad value" in str(event["exception"])
    assert "test_logs.py" in str(event["exception"])
    assert secret not in json.dumps(event).replace('"made-" + "up"', "")


def test_what_a_database_error_quotes_of_a_row_stays_out(logged: Read) -> None:
    """PostgreSQL repeats the row that it refuses, and a row may hold a reason or a hash."""
    message = 'null value in column "text"\nDETAIL:  Failing row contains (acme, launch day, s3cret).\nCONTEXT:  COPY x'
    try:
        raise psycopg.errors.NotNullViolation(message)
    except psycopg.Error as error:
        structlog.get_logger().exception("request.failed")
        structlog.get_logger().warning("background.failed", error=str(error))

    text = json.dumps(logged())
    assert "null value in column" in text
    assert "s3cret" not in text
    assert "launch day" not in text


def test_configuring_again_adds_no_line(logged: Read) -> None:
    """Every plane configures the logs of its process."""
    configure_logs()
    structlog.get_logger().info("once")

    assert [event["event"] for event in logged()] == ["once"]


def test_quiet_levels_are_left_out(logged: Read) -> None:
    """Below the level of the process nothing is written."""
    structlog.get_logger().debug("noise")

    assert logged() == []


def test_an_odd_value_is_told_and_breaks_nothing(logged: Read) -> None:
    """Half a surrogate pair, an object: the line is written."""
    structlog.get_logger().info("odd", path="/\ud800", thing=object())

    [event] = logged()
    assert event["event"] == "odd"
