"""The events of the long run: real security advisories where they are at hand, else made-up ones just as dirty."""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from tests.acceptance.serving import ROOT

VARIABLE: Final = "JOBENGINE_TEST_ADVISORIES"
SHARED: Final = Path("shared", "data", "pypi-advisories.jsonl")
COUNT: Final = 2_661
FIRST: Final = datetime(2005, 12, 31, 5, tzinfo=UTC)
LAST: Final = datetime(2024, 10, 9, tzinfo=UTC)
DETAILS: Final = (
    "plain words",
    "",
    "a\u2028b \\u0000 \x7f",
    'quotes " and \\ back',
    "émigré 日本 \U0001f40d",
    "x" * 280,
)


@dataclass(frozen=True, slots=True)
class Advisories:
    """A file of events and what it holds."""

    path: Path
    events: tuple[tuple[str, datetime], ...]

    def between(self, start: str, end: str) -> list[str]:
        """Return the keys of the events in a half-open window."""
        first, last = datetime.fromisoformat(start), datetime.fromisoformat(end)
        return [key for key, moment in self.events if first <= moment < last]


def find_advisories(folder: Path) -> Advisories:
    """Return the real file where there is one, else write one of the same shape into *folder*."""
    path = _real_file()
    if path is None:
        path = folder / "advisories.jsonl"
        path.write_text("".join(json.dumps(event, ensure_ascii=False) + "\n" for event in made_up_events()), "utf-8")
    lines = (json.loads(line) for line in path.read_text("utf-8").split("\n") if line)
    return Advisories(path, tuple((event["id"], datetime.fromisoformat(event["event_time"])) for event in lines))


def _real_file() -> Path | None:
    if named := os.environ.get(VARIABLE):
        return Path(named)
    return next((folder / SHARED for folder in ROOT.parents if (folder / SHARED).is_file()), None)


def made_up_events() -> Iterator[dict[str, object]]:
    """Make the same events every time: most of them late, a third of them in one year, one in the year 1.

    >>> events = list(made_up_events())
    >>> len(events), len({event["id"] for event in events}), events[0]["event_time"], events[1]["event_time"][:4]
    (2661, 2661, '0001-01-01T00:00:00Z', '2005')
    """
    dice = random.Random(COUNT)  # noqa: S311 - the same events every time are the point
    moments = [FIRST, LAST - timedelta(microseconds=1)]
    moments += [FIRST + (LAST - FIRST) * dice.random() ** 0.3 for _ in range(COUNT - 875)]
    moments += [datetime(2021, 1, 1, tzinfo=UTC) + timedelta(days=365) * dice.random() for _ in range(872)]
    yield _event(dice, "MADE-2024-55", datetime.min.replace(tzinfo=UTC), published=False)
    for number, moment in enumerate(sorted(moments), 1):
        # Advisories are often dated to a round second, and sometimes to midnight, where a month begins.
        exact = moment.replace(microsecond=0) if dice.random() < 0.8 else moment
        exact = exact.replace(day=1, hour=0, minute=0, second=0, microsecond=0) if dice.random() < 0.02 else exact
        yield _event(dice, f"MADE-{exact.year}-{number}", max(exact, FIRST), published=dice.random() < 0.97)


def _event(dice: random.Random, key: str, moment: datetime, *, published: bool) -> dict[str, object]:
    text = moment.isoformat().replace("+00:00", "Z")
    return {
        "id": key,
        "published": text if published else None,
        "modified": text,
        "withdrawn": None,
        "aliases": [],
        "packages": [f"package-{dice.randrange(400)}"],
        "affected_versions": dice.randrange(60),
        "severity": [],
        "details": dice.choice(DETAILS),
        "event_time": text,
    }
