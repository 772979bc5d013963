"""Every entry that there can be, as an event that other tools can read."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from tests.unit.audit.ocsf import faults
from tests.unit.audit.samples import entry, entry_id, salts

from jobengine.audit.actions import Action, Outcome
from jobengine.audit.model import Actor, restore, seal, withheld
from jobengine.audit.views import ocsf_event

ACTORS = [Actor("client", "ops", "jec_1"), Actor("client", "unauthenticated"), Actor("operator", "root"),
          Actor("system", "sequencer")]  # fmt: skip
BARE: dict[str, Any] = {
    "tenant_id": None, "resource": None, "reason": None, "ticket": None, "token_id": None, "properties": {},
    "before": None, "after": None, "trace_id": None,
}  # fmt: skip


def event(**changes: Any) -> dict[str, Any]:
    sealed = seal(entry(**changes), salts())
    return ocsf_event(restore(sealed.leaf, sealed.openings, 0))


@pytest.mark.parametrize("outcome", Outcome)
@pytest.mark.parametrize("action", Action)
def test_every_kind_of_entry_is_an_api_activity(action: Action, outcome: Outcome) -> None:
    """Whoever did it, and however little there is to say."""
    for actor in ACTORS:
        for rest in ({}, BARE):
            assert faults(event(action=action, outcome=outcome, actor=actor, **rest)) == []


def test_an_erased_or_unreadable_entry_is_an_api_activity_too() -> None:
    """What cannot be shown is unknown, not a failure of somebody's."""
    sealed = seal(entry(), salts())
    assert faults(ocsf_event(restore(sealed.leaf, [], 3))) == []

    for tenant_id in ("acme", None):
        hidden = ocsf_event(withheld(entry_id(1), tenant_id, None, bytes(32)))
        assert faults(hidden) == []
        assert (hidden["activity_id"], hidden["status_id"], hidden["actor"]["user"]["uid"]) == (0, 0, "unknown")
        assert hidden["unmapped"]["tampered"] == ["leaf"]


PLANTED: dict[str, Callable[[dict[str, Any]], object]] = {
    **{f"no {name}": lambda event, name=name: event.pop(name) for name in (
        "activity_id", "actor", "api", "category_uid", "class_uid", "metadata", "severity_id", "src_endpoint", "time",
        "type_uid",
    )},
    "no product": lambda event: event["metadata"].pop("product"),
    "no vendor": lambda event: event["metadata"]["product"].pop("vendor_name"),
    "no version": lambda event: event["metadata"].pop("version"),
    "no operation": lambda event: event["api"].pop("operation"),
    "nobody": lambda event: event["actor"].clear(),
    "a user without a name": lambda event: event["actor"]["user"].pop("uid"),
    "from nowhere": lambda event: event["src_endpoint"].clear(),
    "a resource without a name": lambda event: event["resources"][0].pop("uid"),
    "a request without a name": lambda event: event["api"]["request"].clear(),
    "a null": lambda event: event["metadata"].update(tenant_uid=None),
    "a number as text": lambda event: event.update(time=str(event["time"])),
    "a truth as number": lambda event: event.update(status_id=True),
    "a word of ours": lambda event: event.update(reason="launch"),
    "another activity": lambda event: event.update(activity_id=5, type_uid=600305),
    "another type": lambda event: event.update(type_uid=600399),
    "another caption": lambda event: event.update(severity="Mild"),
}  # fmt: skip


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_a_planted_fault_is_found(plant: Callable[[dict[str, Any]], object]) -> None:
    """The check beside it would pass events of any shape; this one would not."""
    planted = copy.deepcopy(event())
    plant(planted)

    assert faults(planted)
