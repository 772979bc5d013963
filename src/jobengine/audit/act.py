"""Who acts, and the audit entry of what they did."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM, Family, Principal

# The names under which the claims of a privileged token stand in an entry's properties.
PROPERTY_OF_CLAIM: Mapping[str, str] = {
    "quota_reason": "quota.reason",
    "quota_ticket": "quota.ticket",
    "backfill_reason": "backfill.reason",
    "backfill_ticket": "backfill.ticket",
    "operator_reason": "request.reason",
    "operator_ticket": "request.ticket",
}


@dataclass(frozen=True, slots=True)
class Act:
    """Something that *principal* does in *tenant_id* at *at*, found again in traces by *trace_id*."""

    principal: Principal
    tenant_id: str
    trace_id: str
    at: datetime

    def entry(
        self,
        action: Action,
        resource: Resource | None,
        *,
        family: Family | None = None,
        outcome: Outcome = Outcome.SUCCESS,
        before: Mapping[str, object] | None = None,
        after: Mapping[str, object] | None = None,
        properties: Mapping[str, object] | None = None,
    ) -> AuditEntry:
        """Describe this act as one entry; its reason and ticket are those of *family* in the token, and no others."""
        intents = self.principal.intents
        carried = {PROPERTY_OF_CLAIM[claim]: text for claim, text in intents.items() if claim in PROPERTY_OF_CLAIM}
        return AuditEntry(
            entry_id=new_id(),
            tenant_id=None if self.tenant_id == PLATFORM else self.tenant_id,
            occurred_at=self.at,
            action=action,
            actor=Actor("client", self.principal.owner, self.principal.client_id),
            resource=resource,
            outcome=outcome,
            reason=intents.get(family.reason) if family else None,
            ticket=intents.get(family.ticket) if family else None,
            token_id=self.principal.token_id,
            properties={**carried, **(properties or {})},
            before=before,
            after=after,
            trace_id=self.trace_id,
        )
