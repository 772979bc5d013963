"""The demo's input: real events with a real event time, and the handler that runs them through a backfill."""

import json
import os
import sysconfig
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

from jobengine.clock import format_time, parse_time

YEARS = 10
MOST_FILES = 5_000
FEW_MONTHS = timedelta(days=365)


class DemoInputError(ValueError):
    """The file of events cannot be used; the message names the line."""


def read_events(path: Path) -> list[dict[str, str]]:
    """Read JSON lines with ``id`` and ``event_time``; raises DemoInputError naming the first bad line."""
    found: list[dict[str, str]] = []
    try:
        # Not splitlines: U+2028 may stand inside a JSON string.
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DemoInputError(f"{path}: {error}") from None
    for number, line in enumerate(lines, 1):
        try:
            event: dict[str, Any] = json.loads(line)
            parse_time(event["event_time"])
            found.append({"id": str(event["id"]), "event_time": event["event_time"]})
        except (ValueError, KeyError, TypeError) as error:
            raise DemoInputError(f"{path}, line {number}: {error}") from None
    if not found:
        raise DemoInputError(f"{path} holds no event")
    return found


def dated_events() -> list[dict[str, str]]:
    """Return an event for each file of Python's library and of the machine's documentation: its path, and its age.

    The library alone is often of one minute, the one in which it was installed.
    """
    roots = (Path(sysconfig.get_paths()["stdlib"]), Path("/usr/share/doc"))
    return [event for root in roots for event in islice(_events_below(root), MOST_FILES)]


def span(events: list[dict[str, str]], now: datetime) -> tuple[datetime, datetime]:
    """Return a window from the beginning of a month that holds the newest events, at most YEARS of them, up to *now*.

    >>> from datetime import UTC
    >>> window = span([{"id": "a", "event_time": "2026-01-15T00:00:00Z"}], datetime(2026, 3, 1, tzinfo=UTC))
    >>> [f"{side:%F}" for side in window]
    ['2026-01-01', '2026-01-16']
    """
    times = sorted(moment for event in events if (moment := parse_time(event["event_time"])) < now)
    if not times:
        raise DemoInputError("no event lies in the past")
    end = min(now, times[-1] + timedelta(days=1)).replace(microsecond=0)
    first = next(moment for moment in times if moment >= end - YEARS * timedelta(days=365))
    return first.replace(day=1, hour=0, minute=0, second=0, microsecond=0), end


def partition_for(start: datetime, end: datetime) -> str:
    """Return months, or days where there are not enough of them to watch.

    >>> from datetime import UTC
    >>> partition_for(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC))
    'P1D'
    """
    return "P1M" if end - start > FEW_MONTHS else "P1D"


def count_in(events: list[dict[str, str]], start: datetime, end: datetime) -> int:
    """Return how many different events lie in the half-open window."""
    return len(set(_inside(events, start, end)))


def handle(batch: Any) -> None:
    """Process one batch of the demo: claim the events of its window, and print them to nobody."""
    events = read_events(Path(batch.params["events"]))
    batch.claim(_inside(events, batch.window.start, batch.window.end))


def _inside(events: list[dict[str, str]], start: datetime, end: datetime) -> Iterator[str]:
    return (event["id"] for event in events if start <= parse_time(event["event_time"]) < end)


def _events_below(root: Path) -> Iterator[dict[str, str]]:
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if name != "site-packages")
        for name in sorted(files):
            path = Path(folder, name)
            try:
                changed_at = datetime.fromtimestamp(int(path.lstat().st_mtime), UTC)
                yield {"id": str(path).encode(errors="replace").decode(), "event_time": format_time(changed_at)}
            except OSError:
                continue
