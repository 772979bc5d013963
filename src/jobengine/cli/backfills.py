"""``jobengine backfill``: run the past again over the API."""

import re
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import Call, TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import Columns, print_json, print_table, show_list, show_one
from jobengine.cli.watch import progress_line, watch_backfill

app = App(name="backfill", default_parameter=Parameter(negative=()))

BACKFILLS: Final[Columns] = {
    "BACKFILL": "backfill_id",
    "JOB TYPE": "job_type",
    "SOURCE": "source",
    "START": "window.start",
    "END": "window.end",
    "STATUS": "status",
    "PROGRESS": lambda backfill: progress_line(backfill["progress"]),
    "BY": "requested_by",
    "REASON": "reason",
}
BATCHES: Final[Columns] = {
    "BATCH": "batch_id",
    "STATUS": "status",
    "START": "window.start",
    "END": "window.end",
    "COUNT": "count",
    "ATTEMPTS": "attempts",
    "WHY WAITING": "why_waiting",
    "ERROR": "error",
}
WINDOWS: Final[Columns] = {"START": "start", "END": "end"}
OVERLAPS: Final[Columns] = {"OVERLAPS": "backfill_id", "STATUS": "status", "START": "window.start", "END": "window.end"}

_DAY: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Choices:
    """How a window is run again; what is None is the server's to choose."""

    partition: Annotated[str | None, Parameter(help="the length of a batch, like P1D or PT1H")] = None
    order: Annotated[Literal["forward", "backward"] | None, Parameter(help="oldest or newest first")] = None
    reprocess: Annotated[
        Literal["missing", "failed", "all"] | None,
        Parameter(help="which partitions to run"),
    ] = None
    max_active: Annotated[int | None, Parameter(help="batches at one time")] = None
    max_failures: Annotated[int | None, Parameter(help="stop when more batches than this have failed")] = None
    max_failure_rate: Annotated[float | None, Parameter(help="stop when more than this share has failed")] = None
    params: Annotated[str | None, Parameter(help="parameters of the job, as a JSON object")] = None
    plan_token: Annotated[str | None, Parameter(help="start only what this preview showed")] = None


Start = Annotated[str, Parameter(help="where the window begins: a time like 2026-03-01T00:00:00Z, or a day")]
End = Annotated[str, Parameter(help="where it ends; this moment itself is not part of it")]
BackfillId = Annotated[str, Parameter(help="the id of a backfill")]
AsOperator = Annotated[bool, Parameter(help="act with orch:operate (reason and ticket) instead of orch:backfill")]


@app.command
def preview(
    job_type: str, source: str, start: Start, end: End, *, choices: Choices | None = None, call: TheCall
) -> None:
    """Show what a backfill would do; nothing is changed.

    Args:
        job_type: a job type that the server's configuration names.
        source: where the events come from.
        start: where the window begins.
        end: where it ends.
        choices: how the window is run again.
        call: the global options.
    """
    with call.api() as api:
        found = api.send("POST", "/backfills/preview", Scope.READ, body=body(job_type, source, start, end, choices))
    if call.as_json:
        print_json(found)
        return
    show_one(call, {name: value for name, value in found.items() if name not in {"overlaps", "uncovered"}})
    if found.get("overlaps"):
        print_table(found["overlaps"], OVERLAPS)
        print_table(found["uncovered"], {f"UNCOVERED {name}": member for name, member in WINDOWS.items()})


@app.command(name="start")
def begin(
    job_type: str,
    source: str,
    start: Start,
    end: End,
    *,
    choices: Choices | None = None,
    watch: bool = False,
    call: TheCall,
) -> int:
    """Start a backfill. Needs a reason.

    Args:
        job_type: a job type that the server's configuration names.
        source: where the events come from.
        start: where the window begins.
        end: where it ends.
        choices: how the window is run again.
        watch: stay until it ends, as ``backfill watch`` does.
        call: the global options.
    """
    with call.api() as api:
        made = api.send("POST", "/backfills", Scope.BACKFILL, body=body(job_type, source, start, end, choices))
    if watch:
        return watch_backfill(call, made["backfill_id"])
    show_one(call, made, f"{made['backfill_id']} is {made['status']}: {progress_line(made['progress'])}")
    return Exit.OK


@app.command(name="list")
def list_backfills(
    *,
    status: str | None = None,
    job_type: str | None = None,
    source: str | None = None,
    limit: int = 1000,
    call: TheCall,
) -> None:
    """List the tenant's backfills.

    Args:
        status: pending, running, paused, completed, failed, canceling or canceled ones only.
        job_type: those of this job type only.
        source: those of this source only.
        limit: how many at the most.
        call: the global options.
    """
    with call.api() as api:
        page = api.items("/backfills", Scope.READ, limit, status=status, job_type=job_type, source=source)
    show_list(call, page, BACKFILLS)


@app.command
def show(backfill: BackfillId, /, *, call: TheCall) -> None:
    """Show a backfill."""
    with call.api() as api:
        found = api.get(f"/backfills/{backfill}", Scope.READ)
    show_one(call, found)


@app.command
def batches(backfill: BackfillId, /, *, limit: int = 1000, call: TheCall) -> None:
    """List the batches of a backfill, and why those wait that wait."""
    with call.api() as api:
        page = api.items(f"/backfills/{backfill}/batches", Scope.READ, limit)
    show_list(call, page, BATCHES)


@app.command
def pause(backfill: BackfillId, /, *, operate: AsOperator = False, call: TheCall) -> None:
    """Hand out no more batches; running ones may finish. Needs a reason."""
    move(call, backfill, "pause", operate=operate)


@app.command
def resume(backfill: BackfillId, /, *, operate: AsOperator = False, call: TheCall) -> None:
    """Go on with a paused backfill. Needs a reason."""
    move(call, backfill, "resume", operate=operate)


@app.command
def cancel(backfill: BackfillId, /, *, operate: AsOperator = False, call: TheCall) -> None:
    """End a backfill for good; running batches are stopped within 15 s. Needs a reason."""
    move(call, backfill, "cancel", operate=operate)


@app.command
def retry_failed(backfill: BackfillId, /, *, operate: AsOperator = False, call: TheCall) -> None:
    """Run the failed batches of a failed backfill again. Needs a reason."""
    move(call, backfill, "retry-failed", operate=operate)


@app.command
def watch(backfill: BackfillId, /, *, interval: float = 1.0, call: TheCall) -> int:
    """Follow a backfill to its end; exit code 0 when it completed, 1 when it failed or was canceled.

    Args:
        backfill: the id of a backfill.
        interval: seconds between two looks.
        call: the global options.
    """
    return watch_backfill(call, backfill, interval=interval)


def move(call: Call, backfill: str, verb: str, *, operate: bool) -> None:
    """Ask for a change of state, and show the state that it led to."""
    with call.api() as api:
        scope = Scope.OPERATE if operate else Scope.BACKFILL
        found = api.send("POST", f"/backfills/{backfill}/{verb}", scope, body={})
    show_one(call, found, f"{found['backfill_id']} is {found['status']}: {progress_line(found['progress'])}")


def body(job_type: str, source: str, start: str, end: str, choices: Choices | None) -> dict[str, Any]:
    """Return the body of a preview or a start; a day stands for its first moment in UTC.

    >>> body("scan", "s3", "2026-03-01", "2026-03-02", Choices(params='{"a": 1}'))["params"]
    {'a': 1}
    """
    chosen = {name: value for name, value in asdict(choices or Choices()).items() if value is not None}
    if "params" in chosen:
        chosen["params"] = _read_params(chosen["params"])
    return {"job_type": job_type, "source": source, "window": {"start": _moment(start), "end": _moment(end)}, **chosen}


def _moment(text: str) -> str:
    return f"{text}T00:00:00Z" if _DAY.fullmatch(text) else text


def _read_params(text: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeError):
        hint = """like --params '{"region": "eu"}'"""
        raise CommandFailed("--params is not a JSON object", Exit.USAGE, hint=hint) from None
