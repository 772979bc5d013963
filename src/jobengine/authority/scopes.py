"""The closed list of scopes: how they are written, who may have them, and what each asks for in return."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from jobengine.tenancy.model import GOVERN, Family


class Scope(StrEnum):
    """What a token allows."""

    READ = "orch:read"
    OPERATE = "orch:operate"
    QUOTA = "orch:quota"
    BACKFILL = "orch:backfill"
    AUDIT = "orch:audit"
    ADMIT = "orch:admit"
    EXECUTE = "orch:execute"
    GOVERN = GOVERN


class Role(StrEnum):
    """What a client is; a role allows scopes and nothing else."""

    VIEWER = "Orch.Viewer"
    OPERATOR = "Orch.Operator"
    ADMIN = "Orch.Admin"
    AUDITOR = "Orch.Auditor"
    WORKER = "Orch.Worker"
    GOVERNOR = "Orch.Governor"


ROLE_SCOPES: Final[Mapping[Role, frozenset[Scope]]] = {
    Role.VIEWER: frozenset({Scope.READ}),
    Role.OPERATOR: frozenset({Scope.READ, Scope.OPERATE}),
    Role.ADMIN: frozenset({Scope.READ, Scope.OPERATE, Scope.QUOTA, Scope.BACKFILL, Scope.AUDIT}),
    Role.AUDITOR: frozenset({Scope.AUDIT}),
    Role.WORKER: frozenset({Scope.ADMIT, Scope.EXECUTE}),
    Role.GOVERNOR: frozenset({Scope.READ, Scope.GOVERN}),
}


def allowed_scopes(roles: Iterable[Role]) -> frozenset[Scope]:
    """Return every scope that at least one of *roles* allows.

    >>> sorted(allowed_scopes([Role.AUDITOR, Role.VIEWER]))
    [<Scope.AUDIT: 'orch:audit'>, <Scope.READ: 'orch:read'>]
    """
    return frozenset[Scope]().union(*(ROLE_SCOPES[role] for role in roles))


@dataclass(frozen=True, slots=True)
class Requirement:
    """What a privileged scope asks for in the token request: always a reason, and a ticket where *ticket_required*."""

    family: Family
    ticket_required: bool


def requirement(scope: Scope, *, backfill_ticket_required: bool) -> Requirement | None:
    """Return what *scope* asks for; None means the scope is not privileged.

    >>> requirement(Scope.READ, backfill_ticket_required=True)
    >>> requirement(Scope.GOVERN, backfill_ticket_required=True)
    Requirement(family=<Family.QUOTA: 'quota'>, ticket_required=False)
    """
    match scope:
        case Scope.OPERATE:
            return Requirement(Family.OPERATE, ticket_required=True)
        case Scope.QUOTA | Scope.GOVERN:
            return Requirement(Family.QUOTA, ticket_required=False)
        case Scope.BACKFILL:
            return Requirement(Family.BACKFILL, ticket_required=backfill_ticket_required)
        case Scope.READ | Scope.AUDIT | Scope.ADMIT | Scope.EXECUTE:
            return None


PRIVILEGED_SCOPES: Final = frozenset(
    scope for scope in Scope if requirement(scope, backfill_ticket_required=False) is not None
)

_SCOPE: Final = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+(?: [\x21\x23-\x5B\x5D-\x7E]+)*")


def parse_scope(text: str) -> tuple[str, ...]:
    r"""Split *text* by the grammar of RFC 6749 section 3.3: tokens and single ASCII spaces, each token once, in order.

    Raises ValueError for anything else. No other white space may ever separate or hide a scope: a parser that splits
    more generously than the one that asks for reasons would hand out a scope whose reason nobody asked for.

    >>> parse_scope("orch:read orch:quota orch:read")
    ('orch:read', 'orch:quota')
    >>> parse_scope("orch:read\torch:quota")
    Traceback (most recent call last):
    ValueError: scope must be tokens of RFC 6749 section 3.3 between single spaces
    """
    if _SCOPE.fullmatch(text) is None:
        raise ValueError("scope must be tokens of RFC 6749 section 3.3 between single spaces")
    return tuple(dict.fromkeys(text.split(" ")))
