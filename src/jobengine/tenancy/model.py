"""Who calls, and for which tenant: values that every layer above may carry."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

TENANT_PATTERN: Final = "[a-z0-9][a-z0-9-]{0,62}"
PLATFORM: Final = "_platform"
"""The key under which the platform's own log is stored; it can never be a tenant, because of its underscore."""

GOVERN: Final = "orch:govern"
COVERED_BY_GOVERN: Final = frozenset({"orch:read", "orch:quota", "orch:audit"})

_TENANT: Final = re.compile(TENANT_PATTERN, re.ASCII)


def is_tenant_id(text: str) -> bool:
    r"""Tell whether *text* can be the id of a tenant.

    >>> is_tenant_id("acme-1"), is_tenant_id("Acme"), is_tenant_id(PLATFORM), is_tenant_id("acme\n")
    (True, False, False, False)
    """
    return _TENANT.fullmatch(text) is not None


class Family(StrEnum):
    """One kind of intent: a reason and a ticket that belong together, and the acts that are done under them.

    >>> Family.OPERATE.reason
    'operator_reason'
    """

    QUOTA = "quota"
    BACKFILL = "backfill"
    OPERATE = "operator"

    @property
    def reason(self) -> str:
        """The name of the reason, as request parameter and as claim."""
        return f"{self}_reason"

    @property
    def ticket(self) -> str:
        """The name of the ticket, as request parameter and as claim."""
        return f"{self}_ticket"


@dataclass(frozen=True, slots=True)
class Purpose:
    """Why a privileged token was asked for, as it was granted."""

    reason: str
    ticket: str | None


@dataclass(frozen=True, slots=True)
class Principal:
    """The holder of a verified access token; *intents* holds only claims that obey the rules for reasons and tickets.

    A principal with a *batch* (``<batch_id>:<fencing_token>``) speaks for that one attempt at that one batch.
    """

    client_id: str
    owner: str
    tenant_id: str | None
    scopes: frozenset[str]
    roles: tuple[str, ...]
    token_id: str
    intents: Mapping[str, str]
    expires_at: datetime
    audit_leaf: str | None = None
    batch: str | None = None

    def has(self, scope: str) -> bool:
        """Tell whether the token carries *scope*, or ``orch:govern`` where that is accepted in its place."""
        return scope in self.scopes or (scope in COVERED_BY_GOVERN and GOVERN in self.scopes)

    def may_work_on(self, batch_id: str, fencing_token: int) -> bool:
        """Tell whether the token may speak for this attempt: a token bound to another attempt may not."""
        return self.batch is None or self.batch == f"{batch_id}:{fencing_token}"

    @property
    def quota_purpose(self) -> Purpose | None:
        """The reason for changing quotas, policy or audit data; a governor states it in the same claims."""
        return self.purpose(Family.QUOTA)

    @property
    def backfill_purpose(self) -> Purpose | None:
        """The reason for running the past again."""
        return self.purpose(Family.BACKFILL)

    @property
    def operator_purpose(self) -> Purpose | None:
        """The reason for stepping into running work."""
        return self.purpose(Family.OPERATE)

    def purpose(self, family: Family) -> Purpose | None:
        """The reason and ticket of one *family*, None where the token carries none."""
        reason = self.intents.get(family.reason)
        return None if reason is None else Purpose(reason, self.intents.get(family.ticket))
