from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from tests.factories import NOW

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, AuditEntry, Resource, seal
from jobengine.authority.clients import Client
from jobengine.authority.entries import Denial, Visit, denial_entry, grant_entry, revocation_entry, summary_entry
from jobengine.authority.forms import Form
from jobengine.authority.grants import Grant, GrantPolicy, decide_grant
from jobengine.authority.oauth_errors import invalid_client, invalid_request
from jobengine.authority.refusals import OTHERS, UNAUTHENTICATED, Source, Summary
from jobengine.authority.scopes import Role
from jobengine.ids import new_id
from jobengine.tenancy.model import PLATFORM, Principal

CLIENT = Client("jec_1", "ops-team", "nightly", ("acme",), (Role.ADMIN, Role.OPERATOR), b"")
VISIT = Visit("token", "192.0.2.7", "0af7651916cd43dd8448eb211c80319c")
GENERATED = "jec_" + "a" * 20
REASONS = {
    "operator_reason": "stuck node",
    "operator_ticket": "OPS-3",
    "backfill_reason": "lost a day",
    "quota_reason": "launch day",
    "quota_ticket": "OPS-1",
}


def granted(scope: str, **form: str) -> Grant:
    asked = {"grant_type": "client_credentials", "scope": scope, **form}
    decision = decide_grant(CLIENT, Form(asked), NOW, GrantPolicy())
    assert isinstance(decision, Grant)
    return decision


def sealable(entry: AuditEntry) -> AuditEntry:
    assert seal(entry, lambda: bytes(16)).entry is entry
    return entry


def test_a_grant_tells_who_got_which_token_for_what_and_why(now: datetime) -> None:
    """The reasons stand where they can be erased, and under the names that every act of the token will repeat."""
    entry = sealable(grant_entry(granted("orch:quota orch:read", **REASONS), VISIT, "t-1", now))

    assert (entry.action, entry.outcome) == (Action.CREDENTIALS_GRANT, Outcome.SUCCESS)
    assert entry.actor == Actor("client", "ops-team", "jec_1")
    assert (entry.tenant_id, entry.token_id, entry.resource) == ("acme", "t-1", Resource("token", "t-1"))
    assert (entry.reason, entry.ticket) == ("launch day", "OPS-1")
    assert entry.properties == {
        "scope": "orch:quota orch:read",
        "address": "192.0.2.7",
        "quota.reason": "launch day",
        "quota.ticket": "OPS-1",
    }
    assert (entry.occurred_at, entry.trace_id) == (now, VISIT.trace_id)


@pytest.mark.parametrize(
    ("scope", "reason", "ticket"),
    [
        ("orch:read", None, None),
        ("orch:operate", "stuck node", "OPS-3"),
        ("orch:backfill", "lost a day", None),
        ("orch:operate orch:backfill", "lost a day", None),
        ("orch:operate orch:backfill orch:quota", "launch day", "OPS-1"),
    ],
)
def test_one_reason_stands_for_the_whole_grant(now: datetime, scope: str, reason: str, ticket: str) -> None:
    """Of several, quota's goes before backfill's, and operate's comes last; all of them stand in the properties."""
    entry = sealable(grant_entry(granted(scope, **REASONS), VISIT, "t-1", now))

    assert (entry.reason, entry.ticket) == (reason, ticket)
    assert sum(name.endswith(".reason") for name in entry.properties) == len(scope.split()) - ("read" in scope)


def test_the_refusal_of_a_known_client_stands_in_its_tenants_log(now: datetime) -> None:
    """It names the error the caller saw, and the cause that it did not."""
    entry = sealable(denial_entry(Denial(invalid_request("no", "tenant_required"), CLIENT, "acme"), VISIT, now))

    assert (entry.action, entry.outcome) == (Action.CREDENTIALS_DENY, Outcome.REFUSED)
    assert (entry.tenant_id, entry.actor) == ("acme", Actor("client", "ops-team", "jec_1"))
    assert entry.properties == {
        "error": "invalid_request",
        "cause": "tenant_required",
        "endpoint": "token",
        "address": "192.0.2.7",
    }


@pytest.mark.parametrize(
    ("denial", "log"),
    [
        (Denial(invalid_client("secret_wrong"), tenant_id="acme"), PLATFORM),
        (Denial(invalid_client("x"), CLIENT), PLATFORM),
        (Denial(invalid_client("x"), CLIENT, "acme"), "acme"),
    ],
)
def test_whoever_proved_nothing_writes_into_no_tenants_log(denial: Denial, log: str, now: datetime) -> None:
    """Nor does a client of several tenants that did not say which."""
    assert denial.log == log
    assert denial_entry(denial, VISIT, now).tenant_id == (None if log == PLATFORM else log)


@pytest.mark.parametrize(
    ("claimed", "told"),
    [
        (GENERATED, {"claimed_client_id": GENERATED}),
        ("jes_" + "a" * 43, {}),
        (GENERATED + "\n", {}),
        ("admin", {}),
        (None, {}),
    ],
)
def test_only_what_can_be_a_client_id_is_told_of_an_unknown_caller(
    claimed: str | None, told: dict[str, str], now: datetime
) -> None:
    """Who puts the secret into the field of the id does not find it in the log for ever."""
    denial = Denial(invalid_client("client_unknown"), claimed=claimed)
    entry = sealable(denial_entry(denial, VISIT, now))

    assert entry.actor == UNAUTHENTICATED
    assert entry.resource is None
    assert {name: text for name, text in entry.properties.items() if name.startswith("claimed")} == told
    assert denial.source("192.0.2.7") == Source(UNAUTHENTICATED, "192.0.2.7")


def test_a_summary_tells_how_many_refusals_and_from_when_to_when(now: datetime) -> None:
    """Of an address in the platform's log, of a client under its own name in its tenant's."""
    summary = Summary(Source(UNAUTHENTICATED, "192.0.2.7"), PLATFORM, 4711, now, now + timedelta(seconds=59))
    entry = sealable(summary_entry(summary, now))

    assert (entry.action, entry.outcome) == (Action.CREDENTIALS_DENY_SUMMARY, Outcome.REFUSED)
    assert (entry.tenant_id, entry.actor) == (None, UNAUTHENTICATED)
    assert entry.properties == {
        "count": 4711,
        "since": "2026-03-01T12:00:00Z",
        "until": "2026-03-01T12:00:59Z",
        "address": "192.0.2.7",
    }
    assert summary_entry(replace(summary, source=OTHERS), now).actor == Actor("system", "authority")
    known = summary_entry(replace(summary, source=Denial(invalid_client("x"), CLIENT).source("-"), log="acme"), now)
    assert (known.tenant_id, known.actor.id, known.resource) == ("acme", "ops-team", Resource("client", "jec_1"))
    assert "address" not in known.properties


def test_a_revocation_names_the_token_and_who_revoked_it(now: datetime) -> None:
    """It stands in the log of the token's tenant."""
    revoked = Principal("jec_1", "ops-team", "acme", frozenset(), (), new_id(), {}, now)
    entry = sealable(revocation_entry(CLIENT, revoked, VISIT, now))

    assert (entry.action, entry.tenant_id, entry.token_id) == (Action.TOKEN_REVOKED, "acme", revoked.token_id)
    assert entry.resource == Resource("token", revoked.token_id)
    assert entry.actor == Actor("client", "ops-team", "jec_1")
