"""One call of the command line: the global options, and what the environment adds to them."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Final, Literal, TypeAlias

from cyclopts import Parameter

from jobengine.tenancy.model import Family

if TYPE_CHECKING:
    from jobengine.cli.api import Api

DEFAULT_URL: Final = "http://127.0.0.1:8080"

Output: TypeAlias = Literal["table", "json"]


@dataclass(frozen=True, slots=True)
class Call:
    """What every command may know beside its own parameters."""

    url: str = DEFAULT_URL
    output: Output = "table"
    reason: str | None = None
    ticket: str | None = None
    environ: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    govern: bool = False

    @property
    def as_json(self) -> bool:
        """Tell whether a program reads the output."""
        return self.output == "json"

    def setting(self, name: str) -> str | None:
        """Return the environment's ``JOBENGINE_<name>``; an empty one counts as not set."""
        return self.environ.get(f"JOBENGINE_{name}") or None

    def reason_for(self, family: Family) -> str | None:
        """Return ``--reason``, or else the environment's reason for *family*."""
        return self.setting(family.reason.upper()) if self.reason is None else self.reason

    def ticket_for(self, family: Family) -> str | None:
        """Return ``--ticket``, or else the environment's ticket for *family*."""
        return self.setting(family.ticket.upper()) if self.ticket is None else self.ticket

    def api(self) -> "AbstractContextManager[Api]":
        """Open a connection to the API."""
        from jobengine.cli.api import open_api

        return open_api(self)


# A command that names a parameter of this type is given the call; it is no option of its own.
TheCall: TypeAlias = Annotated[Call, Parameter(parse=False)]
