"""The TenantResolver: from a verified token and its headers to the one tenant a request acts in."""

from collections.abc import Sequence
from dataclasses import dataclass

from jobengine.errors import Malformed, TenantMismatch
from jobengine.tenancy.model import GOVERN, Principal, is_tenant_id


@dataclass(frozen=True, slots=True)
class Resolved:
    """The tenant of a request; a *selected* one is not the token's own, so the caller must check that it exists."""

    tenant_id: str
    selected: bool


@dataclass(frozen=True, slots=True)
class TenantResolver:
    """The tenant is the token's; a header may only repeat it, or select another one for ``orch:govern``."""

    def resolve(self, principal: Principal, headers: Sequence[str]) -> Resolved:
        """Return the tenant *principal* acts in.

        *headers* holds every value of ``X-StellaOps-Tenant`` and of ``X-Stella-Tenant``: both at once is twice.
        Raises Malformed (``tenant_required``, ``tenant_invalid``) and TenantMismatch.

        >>> from datetime import UTC, datetime
        >>> later = datetime(2026, 1, 1, tzinfo=UTC)
        >>> reader = Principal("c", "c", "acme", frozenset({"orch:read"}), (), "t", {}, expires_at=later)
        >>> TenantResolver().resolve(reader, [])
        Resolved(tenant_id='acme', selected=False)
        """
        if principal.tenant_id is None:
            raise Malformed("the access token names no tenant", code="tenant_required")
        if len(headers) > 1:
            raise Malformed("the tenant header was sent more than once", code="tenant_invalid")
        if not headers or headers[0] == principal.tenant_id:
            return Resolved(principal.tenant_id, selected=False)
        if not is_tenant_id(headers[0]):
            raise Malformed("the tenant header does not hold a tenant id", code="tenant_invalid")
        if GOVERN not in principal.scopes:
            raise TenantMismatch("the tenant header names another tenant than the access token")
        return Resolved(headers[0], selected=True)
