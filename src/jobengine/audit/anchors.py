"""What the service writes down about its own logs: that it lives, how far each log has grown, which is stuck."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.checkpoint import Checkpoint
from jobengine.audit.model import Actor, AuditEntry, Resource
from jobengine.ids import new_id

SEQUENCER: Final = Actor("system", "sequencer")


@dataclass(frozen=True, slots=True)
class Watch:
    """A serving *process* that writes into the platform's log *at* a moment."""

    process: str
    at: datetime

    def entry(self, action: Action, properties: Mapping[str, object] | None = None) -> AuditEntry:
        """Say that the process started or stopped, or that it is alive."""
        return self._entry(action, Resource("process", self.process), properties or {})

    def anchored(self, heads: Sequence[Checkpoint]) -> AuditEntry:
        """Write down how far some logs have grown."""
        anchors = [{"origin": head.origin, "size": head.size, "root_hash": head.root.hex()} for head in heads]
        return self._entry(Action.LOG_ANCHORED, Resource("process", self.process), {"anchors": anchors})

    def stuck(self, origin: str, because: str) -> AuditEntry:
        """Say that a log cannot go on."""
        return self._entry(Action.LOG_STUCK, Resource("audit_log", origin), {"because": because}, Outcome.FAILURE)

    def _entry(
        self,
        action: Action,
        resource: Resource,
        properties: Mapping[str, object],
        outcome: Outcome = Outcome.SUCCESS,
    ) -> AuditEntry:
        return AuditEntry(
            entry_id=new_id(),
            tenant_id=None,
            occurred_at=self.at,
            action=action,
            actor=SEQUENCER,
            outcome=outcome,
            resource=resource,
            properties=properties,
        )


def read_anchors(leaf: bytes) -> list[Checkpoint]:
    """Return the heads that the leaf of a ``log.anchored`` entry holds; raises ValueError for what is no such leaf."""
    try:
        members: Any = json.loads(leaf)
        if members["action"] != Action.LOG_ANCHORED:
            raise ValueError("not an anchor")
        return [
            Checkpoint(anchor["origin"], anchor["size"], bytes.fromhex(anchor["root_hash"]))
            for anchor in members["properties"]["anchors"]
        ]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("not an anchor") from error
