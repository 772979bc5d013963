"""Entries, logs and exports to test with: the same in every run."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.checkpoint import sign, verifier_key
from jobengine.audit.export import entry_line, head_line
from jobengine.audit.merkle import Frontier
from jobengine.audit.model import Actor, AuditEntry, Resource, SealedEntry, seal
from jobengine.audit.sequencer import Head

ORIGIN = "audit.example/log/7f3c"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
VKEY = str(verifier_key(ORIGIN, KEY))
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


def entry_id(number: int) -> str:
    return f"019c13f0-0000-7000-8000-{number:012x}"


def entry(number: int = 0, **changes: Any) -> AuditEntry:
    members: dict[str, Any] = {
        "entry_id": entry_id(number),
        "tenant_id": "acme",
        "occurred_at": NOON + timedelta(milliseconds=number),
        "action": Action.QUOTA_ADJUSTED,
        "actor": Actor("client", "ops-team", "cl_1"),
        "resource": Resource("quota", "019c13f0-0000-7000-8000-00000000abcd"),
        "outcome": Outcome.SUCCESS,
        "reason": f"Quarter end load, day {number}",
        "ticket": "INC-4711",
        "token_id": "019c13f0-0000-7000-8000-0000000000ff",
        "properties": {"quota.reason": f"Quarter end load, day {number}", "quota.ticket": "INC-4711"},
        "before": {"limits": {"max_active": 10, "refill_per_second": Decimal("1.0")}},
        "after": {"limits": {"max_active": 50, "refill_per_second": Decimal("2.5")}},
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
    }
    return AuditEntry(**(members | changes))


def salts() -> Callable[[], bytes]:
    numbers = count(1)
    return lambda: next(numbers).to_bytes(16)


def sealed_entries(amount: int, start: int = 0) -> list[SealedEntry]:
    salt = salts()
    return [seal(entry(number), salt) for number in range(start, start + amount)]


def note(entries: list[SealedEntry], key: Ed25519PrivateKey = KEY, origin: str = ORIGIN) -> str:
    head = Head(origin, Frontier().extend(sealed.leaf_hash for sealed in entries))
    return sign(head.checkpoint(), key)


def entry_lines(entries: list[SealedEntry]) -> Iterator[bytes]:
    return (entry_line(sealed.leaf, sealed.openings) for sealed in entries)


def export(entries: list[SealedEntry], key: Ed25519PrivateKey = KEY) -> bytes:
    return head_line(note(entries, key)) + b"".join(entry_lines(entries))
