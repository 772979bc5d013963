"""``jobengine policy``: the platform's policy, over the API."""

from typing import Annotated, Any, Final

from cyclopts import App, Parameter

from jobengine.authority.scopes import Scope
from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.cli.show import show_one

app = App(name="policy", default_parameter=Parameter(negative=()))

LIMIT_TYPES: Final = {"max_active": int, "max_per_hour": int, "burst": int, "refill_per_second": float}


@app.command
def show(*, call: TheCall) -> None:
    """Show the policy that bounds every tenant."""
    with call.api() as api:
        found = api.get("/policy", Scope.READ)
    show_one(call, found)


@app.command(name="set")
def change(
    *,
    ceiling: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    default_limit: Annotated[tuple[str, ...], Parameter(consume_multiple=True)] = (),
    max_raise_factor: float | None = None,
    max_override_duration: str | None = None,
    backfill_share: float | None = None,
    approval_above: float | None = None,
    no_approval: bool = False,
    approval_expires: str | None = None,
    if_version: int | None = None,
    call: TheCall,
) -> None:
    """Change some members of the policy; the others stay. Needs a governor, and a reason.

    Args:
        ceiling: the most that any limit may be, like max_active=5000; may be given more than once.
        default_limit: a limit of job types without a quota, like burst=50; may be given more than once.
        max_raise_factor: the largest raise in one step, as a factor.
        max_override_duration: the longest override, like P7D.
        backfill_share: the part of the slots that backfills may hold, 0 to 1.
        approval_above: the factor above which a raise waits for a second person.
        no_approval: let no raise wait.
        approval_expires: how long a raise waits, like PT24H.
        if_version: change it only if it is still at this version.
        call: the global options.
    """
    asked: dict[str, Any] = {
        "ceilings": read_limits(ceiling),
        "default_limits": read_limits(default_limit),
        "max_raise_factor": max_raise_factor,
        "max_override_duration": max_override_duration,
        "backfill_share": backfill_share,
        "approval_above": approval_above,
        "approval_expires": approval_expires,
    }
    _put(
        call,
        {name: value for name, value in asked.items() if value is not None},
        no_approval=no_approval,
        if_version=if_version,
    )


def _put(call: TheCall, body: dict[str, Any], *, no_approval: bool, if_version: int | None) -> None:
    if no_approval and "approval_above" in body:
        raise CommandFailed("--approval-above and --no-approval exclude each other", Exit.USAGE)
    if no_approval:
        body["approval_above"] = None
    if not body:
        raise CommandFailed("name at least one member to change", Exit.USAGE, hint="like --max-raise-factor 5")
    with call.api() as api:
        found = api.send("PUT", "/policy", Scope.GOVERN, body=body, version=if_version)
    show_one(call, found)


def read_limits(settings: tuple[str, ...]) -> dict[str, float] | None:
    """Read limits as they stand on a command line; raises CommandFailed for what is none.

    >>> read_limits(("max_active=5", "refill_per_second=0.5")), read_limits(())
    ({'max_active': 5, 'refill_per_second': 0.5}, None)
    """
    limits: dict[str, float] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        try:
            limits[name] = LIMIT_TYPES[name.replace("-", "_")](value)
        except (KeyError, ValueError):
            raise CommandFailed(f"{setting} is no limit", Exit.USAGE, hint=f"{', '.join(LIMIT_TYPES)}=NUMBER") from None
    return limits or None
