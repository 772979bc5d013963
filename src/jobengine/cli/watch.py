"""Following a backfill to its end: a bar on a terminal, lines elsewhere."""

import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from time import sleep
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from jobengine.authority.scopes import Scope
from jobengine.cli.call import Call
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import cell, print_json, print_note

if TYPE_CHECKING:
    from jobengine.cli.api import Api

# A server that restarts is away for some seconds; one that stays away ends the watch.
MAX_MISSES: Final = 30
END_OF_STATUS: Final[Mapping[str, Exit]] = {"completed": Exit.OK, "failed": Exit.ERROR, "canceled": Exit.ERROR}
_OVER: Final = ("succeeded", "skipped", "failed", "canceled")

Backfill: TypeAlias = Mapping[str, Any]
Draw: TypeAlias = Callable[[Backfill], None]


def watch_backfill(call: Call, backfill_id: str, *, interval: float = 1.0) -> int:
    """Follow a backfill until nothing more happens to it, and return how the command ends."""
    with call.api() as api, _drawing(call) as draw:
        states = _states(api, backfill_id, interval)
        draw(backfill := next(states))
        while backfill["status"] not in END_OF_STATUS:
            draw(backfill := next(states))
    if call.as_json:
        print_json(backfill)
    return END_OF_STATUS[backfill["status"]]


def _states(api: "Api", backfill_id: str, interval: float) -> Iterator[Backfill]:
    misses = 0
    while True:
        try:
            backfill = api.get(f"/backfills/{backfill_id}", Scope.READ)
        except CommandFailed as failed:
            misses += 1
            if failed.end != Exit.RETRY_LATER or misses > MAX_MISSES:
                raise
        else:
            misses = 0
            yield backfill
        sleep(interval)


@contextmanager
def _drawing(call: Call) -> Generator[Draw]:
    if call.as_json or not sys.stdout.isatty():
        yield _lines(print_note if call.as_json else print)
    else:
        with _bar() as draw:
            yield draw


def _lines(write: Callable[[str], object]) -> Draw:
    last = ""

    def draw(backfill: Backfill) -> None:
        nonlocal last
        line = f"{backfill['status']}: {progress_line(backfill['progress'])}"
        if line != last:
            write(line)
            sys.stdout.flush()
            last = line

    return draw


@contextmanager
def _bar() -> Generator[Draw]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=None, more="")

        def draw(backfill: Backfill) -> None:
            batches = backfill["progress"]["batches"]
            progress.update(
                task,
                description=backfill["status"],
                total=batches["total"],
                completed=finished(batches),
                more=_more(backfill["progress"]),
            )

        yield draw


def progress_line(progress: Mapping[str, Any]) -> str:
    """Write how far a backfill is.

    >>> progress_line({"batches": {"total": 4, "succeeded": 1, "skipped": 1, "failed": 1}, "events": {"processed": 9}})
    '3/4 batches, 1 failed, 1 skipped, 9 events'
    """
    batches = progress["batches"]
    more = _more(progress)
    return f"{finished(batches)}/{batches['total']} batches" + (f", {more}" if more else "")


def finished(batches: Mapping[str, int]) -> int:
    """Count the batches that nothing more happens to."""
    return sum(batches.get(status, 0) for status in _OVER)


def _more(progress: Mapping[str, Any]) -> str:
    batches: Mapping[str, int] = progress["batches"]
    events: Mapping[str, int] = progress.get("events") or {}
    told = [f"{batches[status]} {status}" for status in ("running", *_OVER[1:]) if batches.get(status)]
    told += [f"{events['processed']} events"] if events.get("processed") else []
    told += [f"done {cell(progress['eta'])}"] if progress.get("eta") else []
    return ", ".join(sorted(told, key=lambda part: "failed" not in part))
