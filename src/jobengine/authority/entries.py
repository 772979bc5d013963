"""What the authority writes down: one entry for each grant, each refusal and each revocation.

No entry repeats what a caller sent, unless the sending was checked to be harmless: no secret ever comes near the log.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.authority.clients import Client
from jobengine.authority.grants import Grant
from jobengine.authority.intent import audit_properties
from jobengine.authority.oauth_errors import OAuthError
from jobengine.authority.refusals import UNAUTHENTICATED, Source, Summary
from jobengine.clock import format_time
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM, Family, Principal

_GENERATED_ID: Final = re.compile(r"jec_[A-Za-z0-9_-]{20}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Visit:
    """One request to one *endpoint* of the authority: where it came from, and the trace that finds it again."""

    endpoint: str
    address: str
    trace_id: str


@dataclass(frozen=True, slots=True)
class Denial:
    """A refused request; *client* is who proved to send it, *claimed* the id of which that was only said.

    *tenant_id* is the tenant it was about, None where that is not known.
    """

    error: OAuthError
    client: Client | None = None
    tenant_id: str | None = None
    claimed: str | None = None

    @property
    def log(self) -> str:
        """The log it belongs to: whoever proved nothing writes into no tenant's."""
        return PLATFORM if self.client is None else self.tenant_id or PLATFORM

    def source(self, address: str) -> Source:
        """Return with whose refusals this one counts."""
        return Source(UNAUTHENTICATED, address) if self.client is None else Source(actor_of(self.client))


def actor_of(client: Client) -> Actor:
    """Return who acts when *client* does: its owner."""
    return Actor("client", client.owner, client.client_id)


def grant_entry(grant: Grant, visit: Visit, token_id: str, at: datetime) -> AuditEntry:
    """Describe a grant; its reason is that of the first family among quota, backfill and operate."""
    claims = grant.intent.claims
    family = next((family for family in Family if family.reason in claims), None)
    return AuditEntry(
        entry_id=new_id(),
        tenant_id=grant.tenant_id,
        occurred_at=at,
        action=Action.CREDENTIALS_GRANT,
        actor=Actor("client", grant.owner, grant.client_id),
        resource=Resource("token", token_id),
        outcome=Outcome.SUCCESS,
        reason=claims.get(family.reason) if family else None,
        ticket=claims.get(family.ticket) if family else None,
        token_id=token_id,
        properties={"scope": grant.scope, "address": visit.address, **audit_properties(claims)},
        trace_id=visit.trace_id,
    )


def denial_entry(denial: Denial, visit: Visit, at: datetime) -> AuditEntry:
    """Describe a refusal by its error and cause.

    A client id that nobody proved stands in it only if it could be one: people put secrets into the wrong field.
    """
    claimed = denial.claimed if denial.claimed and _GENERATED_ID.fullmatch(denial.claimed) else None
    return AuditEntry(
        entry_id=new_id(),
        tenant_id=_tenant_of(denial.log),
        occurred_at=at,
        action=Action.CREDENTIALS_DENY,
        actor=UNAUTHENTICATED if denial.client is None else actor_of(denial.client),
        resource=None if denial.client is None else Resource("client", denial.client.client_id),
        outcome=Outcome.REFUSED,
        properties={
            "error": denial.error.error,
            "cause": denial.error.cause,
            "endpoint": visit.endpoint,
            "address": visit.address,
            **({"claimed_client_id": claimed} if claimed else {}),
        },
        trace_id=visit.trace_id,
    )


def summary_entry(summary: Summary, at: datetime) -> AuditEntry:
    """Describe refusals that have no entries of their own."""
    source = summary.source
    return AuditEntry(
        entry_id=new_id(),
        tenant_id=_tenant_of(summary.log),
        occurred_at=at,
        action=Action.CREDENTIALS_DENY_SUMMARY,
        actor=source.actor,
        resource=None if source.actor.client_id is None else Resource("client", source.actor.client_id),
        outcome=Outcome.REFUSED,
        properties={
            "count": summary.count,
            "since": format_time(summary.since),
            "until": format_time(summary.until),
            **({"address": source.address} if source.address else {}),
        },
    )


def revocation_entry(client: Client, revoked: Principal, visit: Visit, at: datetime) -> AuditEntry:
    """Describe that *client* revoked its own token."""
    return AuditEntry(
        entry_id=new_id(),
        tenant_id=revoked.tenant_id,
        occurred_at=at,
        action=Action.TOKEN_REVOKED,
        actor=actor_of(client),
        resource=Resource("token", revoked.token_id),
        outcome=Outcome.SUCCESS,
        token_id=revoked.token_id,
        properties={"address": visit.address},
        trace_id=visit.trace_id,
    )


def _tenant_of(log: str) -> str | None:
    return None if log == PLATFORM else log
