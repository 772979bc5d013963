"""``jobengine``: the subcommands, the options that all of them share, and the end of every call."""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Final

from cyclopts import App, Group, Parameter
from cyclopts.exceptions import CycloptsError

from jobengine import __version__
from jobengine.cli.call import DEFAULT_URL, Call, Output
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.errors import JobengineError

# Name → where it is and what it does; a module is imported when its command is called.
COMMANDS: Final[Mapping[str, tuple[str, str]]] = {
    "serve": ("jobengine.cli.serve:app", "Serve the API, with a database of its own unless JOBENGINE_DATABASE_URL."),
    "worker": ("jobengine.cli.worker:app", "Run batches beside the server, without a database."),
    "migrate": ("jobengine.cli.migrate:app", "Bring the database to the schema of this release."),
    "client": ("jobengine.cli.clients:app", "Make, list and disable clients, on the database itself."),
    "key": ("jobengine.cli.keys:app", "Look after the keys that sign access tokens, on the database itself."),
    "token": ("jobengine.cli.token:app", "Get an access token."),
    "quota": ("jobengine.cli.quotas:app", "See and change quotas."),
    "change": ("jobengine.cli.changes:app", "Decide on changes of quotas that wait for a second person."),
    "allocation": ("jobengine.cli.allocations:app", "Share slots of the platform between tenants."),
    "policy": ("jobengine.cli.policy:app", "See and change the platform's policy."),
    "backfill": ("jobengine.cli.backfills:app", "Run the past again, and watch it."),
    "demo": ("jobengine.cli.demo:app", "Play the promises against a server of its own."),
    "witness": ("jobengine.cli.witness:app", "Be a witness: cosign the checkpoints of logs that only grow."),
    "audit": ("jobengine.cli.audit:app", "Read, verify and export the audit log."),
}

app = App(
    name="jobengine",
    help="Who may use how much of a shared job platform, who may run the past again, and the proof of it.",
    version=f"jobengine {__version__}",
    default_parameter=Parameter(negative=()),
    help_epilogue="Exit codes: 0 ok, 1 error, 2 usage, 3 auth, 4 not found, 5 refused, 10 retry later.",
)
for _name, (_place, _help) in COMMANDS.items():
    app.command(_place, name=_name, help=_help)
app.meta.group_parameters = Group("Global options, before or after the command")


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    url: Annotated[str, Parameter(env_var="JOBENGINE_URL")] = DEFAULT_URL,
    output: Output = "table",
    reason: str | None = None,
    ticket: str | None = None,
    govern: bool = False,
) -> object:
    """Run one command.

    Args:
        tokens: the command and its own arguments.
        url: the server, for commands that use the API.
        output: tables for people, JSON for programs.
        reason: why; else JOBENGINE_QUOTA_REASON or JOBENGINE_BACKFILL_REASON, whichever the command needs.
        ticket: where it was agreed; else JOBENGINE_QUOTA_TICKET or JOBENGINE_BACKFILL_TICKET.
        govern: act as a governor, in any tenant: the one that JOBENGINE_TENANT names.
    """
    command, bound, unbound = app.parse_args(tokens, exit_on_error=False, print_error=False)
    call = Call(url.rstrip("/"), output, reason, ticket, dict(os.environ), govern)
    given = {name: call for name, kind in unbound.items() if kind is Call}
    return command(*bound.args, **bound.kwargs, **given)


def main() -> None:
    """Run the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; what went wrong is told on standard error."""
    try:
        end = app.meta(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return end if isinstance(end, int) else Exit.OK
    except CommandFailed as failed:
        return _tell(failed)
    except JobengineError as error:
        return _tell(CommandFailed.of_problem(error.detail, error.problem_code))
    except CycloptsError as error:
        return _tell(CommandFailed(" ".join(str(error).split()), Exit.USAGE, hint="jobengine COMMAND --help"))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # Whoever read the output has seen enough; the flush at the end must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.ERROR


def _tell(failed: CommandFailed) -> int:
    sys.stdout.flush()
    sys.stderr.write(f"{failed}\n")
    return failed.end
