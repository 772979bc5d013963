"""``jobengine change``: changes of quotas that wait for a second person, over the API."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from cyclopts import App, Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import TheCall
from jobengine.cli.show import Columns, cell, show_list, show_one

app = App(name="change", default_parameter=Parameter(negative=()))


def wanted(change: Mapping[str, Any]) -> str:
    """Write what a change would make of the limits.

    >>> wanted({"from": {"max_active": 5, "burst": 1}, "to": {"max_active": 8, "burst": 1}})
    'max_active 5→8'
    """
    old: Mapping[str, Any] = change["from"] or {}
    moved = [name for name, value in change["to"].items() if old.get(name) != value]
    return " ".join(f"{name} {cell(old.get(name))}→{cell(change['to'][name])}" for name in moved)


WHOLE_TENANT: Final = "(whole tenant)"
CHANGES: Final[Columns] = {
    "CHANGE": "change_id",
    "STATUS": "status",
    "JOB TYPE": lambda change: change["job_type"] or WHOLE_TENANT,
    "WANTS": wanted,
    "UNTIL": "until",
    "WHO": "requested_by",
    "REASON": "reason",
    "TICKET": "ticket",
    "EXPIRES": "expires_at",
    "DECIDED BY": "decided_by",
}

Status = Literal["pending", "approved", "rejected", "expired", "emergency"]
Change = Annotated[str, Parameter(help="the id of a change")]


@app.command(name="list")
def list_changes(*, status: Status | None = None, requests: bool = False, limit: int = 1000, call: TheCall) -> None:
    """List changes that wait, and what became of others.

    Args:
        status: only those of which this became.
        requests: only what the tenant has asked for itself.
        limit: how many at the most.
        call: the global options.
    """
    with call.api() as api:
        page = api.items("/quota-requests" if requests else "/quota-changes", Scope.READ, limit, status=status)
    show_list(call, page, CHANGES)


@app.command
def show(change: Change, /, *, call: TheCall) -> None:
    """Show a change: who wants what, why, and what is in use now."""
    with call.api() as api:
        found = api.get(f"/quota-changes/{change}", Scope.READ)
    show_one(call, found)


@app.command
def approve(change: Change, /, *, comment: str | None = None, call: TheCall) -> None:
    """Make a change that somebody else asked for."""
    _decide(call, change, "approve", comment)


@app.command
def reject(change: Change, /, *, comment: str | None = None, call: TheCall) -> None:
    """Let a change never be that somebody else asked for."""
    _decide(call, change, "reject", comment)


def _decide(call: TheCall, change: str, move: str, comment: str | None) -> None:
    body = {} if comment is None else {"comment": comment}
    with call.api() as api:
        found = api.send("POST", f"/quota-changes/{change}/{move}", Scope.QUOTA, body=body)
    show_one(call, found, f"{found['status']} {change}: {wanted(found)}")


def told_of_wait(answer: Mapping[str, Any]) -> str | None:
    """Write in one line that a change waits, None for an answer that does not say so."""
    if "change_id" not in answer:
        return None
    return f"waits for a second person until {answer['expires_at']}: change {answer['change_id']}, {wanted(answer)}"
