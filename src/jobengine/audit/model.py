"""AuditEntry, the bytes that stand for it in the tree, and the texts that can be erased without touching the tree."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, cast

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.canonical import canonical
from jobengine.audit.merkle import leaf_hash
from jobengine.clock import format_time

SALT_BYTES = 16
LEAF_MAX_BYTES = 8 * 2**20

_TEXTS = ("reason", "ticket")
_TEXT_SUFFIXES = (".reason", ".ticket")
_PROPERTIES = "properties."
_COMMITMENT = "salted_sha256"


@dataclass(frozen=True, slots=True)
class Actor:
    """Who did it: *id* is the owner behind a client, an operating-system user, or a part of the service."""

    type: Literal["client", "operator", "system"]
    id: str
    client_id: str | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """What it was done to."""

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One act and its outcome; *tenant_id* None puts it into the platform's log.

    Texts of people belong into *reason*, *ticket* and the *properties* named ``*.reason`` or ``*.ticket``: only there
    can they be erased later. *before* and *after* are hashed as they are, for ever.
    """

    entry_id: str
    tenant_id: str | None
    occurred_at: datetime
    action: Action
    actor: Actor
    outcome: Outcome
    resource: Resource | None = None
    reason: str | None = None
    ticket: str | None = None
    token_id: str | None = None
    properties: Mapping[str, object] = field(default_factory=dict[str, object])
    before: Mapping[str, object] | None = None
    after: Mapping[str, object] | None = None
    trace_id: str | None = None


@dataclass(frozen=True, slots=True)
class Opening:
    """The text behind one commitment of a leaf; *field* is ``reason``, ``ticket`` or ``properties.`` and the key."""

    field: str
    salt: bytes
    text: str


@dataclass(frozen=True, slots=True)
class SealedEntry:
    """An entry, its leaf, the leaf's hash, and the openings that are kept beside it until they are erased."""

    entry: AuditEntry
    leaf: bytes
    leaf_hash: bytes
    openings: tuple[Opening, ...]


def seal(entry: AuditEntry, salt: Callable[[], bytes]) -> SealedEntry:
    """Make the leaf of *entry*; *salt* gives 16 random bytes at each call.

    Raises ValueError or TypeError for an entry that has no exact JSON form, holds a naive time, or is over 8 MiB.
    """
    openings: list[Opening] = []

    def committed(name: str, text: object) -> dict[str, str] | None:
        if text is None:
            return None
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a text")
        openings.append(Opening(name, _checked_salt(salt()), text))
        return commitment(openings[-1])

    leaf = canonical(_members(entry, committed))
    if len(leaf) > LEAF_MAX_BYTES:
        raise ValueError(f"an entry of {len(leaf)} bytes is over {LEAF_MAX_BYTES}")
    return SealedEntry(entry, leaf, leaf_hash(leaf), tuple(openings))


def commitment(opening: Opening) -> dict[str, str]:
    """Return what stands in the leaf for *opening*: SHA-256 of the salt, then the text in UTF-8.

    >>> commitment(Opening("reason", bytes(16), "scale out"))["salted_sha256"][:16]
    '2439c809ae747b2e'
    """
    return {_COMMITMENT: sha256(opening.salt + opening.text.encode()).hexdigest()}


def restore(leaf: bytes, openings: Iterable[Opening], sequence: int | None) -> dict[str, Any]:
    """Return the public view of a stored leaf, its texts put back from *openings*.

    A text without its opening shows as null and is named in ``erased``; one whose opening does not match the leaf is
    not shown either and is named in ``tampered``. Both members are absent when empty. Raises ValueError for bytes that
    are no leaf.
    """
    members = _read(leaf)
    view = {
        "entry_id": members["entry_id"],
        "tenant_id": members["tenant_id"],
        "sequence": sequence,
        **{name: members[name] for name in _ORDER},
        "leaf_hash": leaf_hash(leaf).hex(),
    }
    kept = {opening.field: opening for opening in openings}
    erased: list[str] = []
    tampered: list[str] = []
    for name, holder, key in _commitments(view):
        opening = kept.get(name)
        matches = opening is not None and _opens(opening, holder[key])
        holder[key] = opening.text if opening is not None and matches else None
        if not matches:
            (erased if opening is None else tampered).append(name)
    return view | ({"erased": erased} if erased else {}) | ({"tampered": tampered} if tampered else {})


def withheld(entry_id: str, tenant_id: str | None, sequence: int | None, hashed: bytes) -> dict[str, Any]:
    """Return the public view of an entry whose leaf is not the one that was hashed: nothing that it says is shown.

    *hashed* is the leaf hash in the tree; ``leaf`` is named in ``tampered``.
    """
    members = {"entry_id": entry_id, "tenant_id": tenant_id, "sequence": sequence, **dict.fromkeys(_ORDER)}
    return members | {"properties": {}, "leaf_hash": hashed.hex(), "tampered": ["leaf"]}


def mismatches(leaf: bytes, openings: Iterable[Opening]) -> tuple[str, ...]:
    """Name the *openings* that do not open a commitment of *leaf*; none for an entry that is as it was sealed.

    Raises ValueError for bytes that are no leaf.
    """
    committed = {name: holder[key] for name, holder, key in _commitments(_read(leaf))}
    return tuple(opening.field for opening in openings if not _opens(opening, committed.get(opening.field)))


_ORDER = (
    "occurred_at",
    "action",
    "actor",
    "resource",
    "outcome",
    "reason",
    "ticket",
    "token_id",
    "properties",
    "before",
    "after",
    "trace_id",
)


def _members(entry: AuditEntry, committed: Callable[[str, object], object]) -> dict[str, object]:
    if entry.occurred_at.tzinfo is None:
        raise ValueError("occurred_at must know its time zone")
    actor, resource = entry.actor, entry.resource
    return {
        "entry_id": entry.entry_id,
        "tenant_id": entry.tenant_id,
        "occurred_at": format_time(entry.occurred_at),
        "action": entry.action,
        "actor": {"type": actor.type, "id": actor.id, "client_id": actor.client_id},
        "resource": None if resource is None else {"type": resource.type, "id": resource.id},
        "outcome": entry.outcome,
        "reason": committed("reason", entry.reason),
        "ticket": committed("ticket", entry.ticket),
        "token_id": entry.token_id,
        "properties": {
            key: committed(_PROPERTIES + key, value) if key.endswith(_TEXT_SUFFIXES) else value
            for key, value in entry.properties.items()
        },
        "before": entry.before,
        "after": entry.after,
        "trace_id": entry.trace_id,
    }


def _read(leaf: bytes) -> dict[str, Any]:
    members: Any = json.loads(leaf)
    match members:
        case {"entry_id": _, "tenant_id": _, "properties": dict(), **rest} if rest.keys() >= {*_ORDER} - {"properties"}:
            return cast("dict[str, Any]", members)
        case _:
            raise ValueError("not the leaf of an audit entry")


def _commitments(members: dict[str, Any]) -> list[tuple[str, dict[str, Any], str]]:
    """List the committed texts of a leaf: the opening's field, and where the commitment stands."""
    properties: dict[str, Any] = members["properties"]
    return [(name, members, name) for name in _TEXTS if members[name] is not None] + [
        (_PROPERTIES + key, properties, key)
        for key in properties
        if key.endswith(_TEXT_SUFFIXES) and properties[key] is not None
    ]


def _opens(opening: Opening, committed: object) -> bool:
    # A salt of another length would move the line between salt and text without changing the hash.
    return len(opening.salt) == SALT_BYTES and commitment(opening) == committed


def _checked_salt(salt: bytes) -> bytes:
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes")
    return salt
