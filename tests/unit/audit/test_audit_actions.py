from pathlib import Path

from jobengine.audit.actions import Action, Outcome

LEDGER = Path(__file__).parents[3] / "docs" / "ledger.md"


def test_every_action_and_outcome_is_documented() -> None:
    """A reader of an export finds each action and outcome in docs/ledger.md."""
    text = LEDGER.read_text("utf-8")

    assert [name for name in (*Action, *Outcome) if f"`{name}`" not in text] == []


def test_actions_of_the_contract_are_recordable() -> None:
    """The names that clients were promised exist as they were promised."""
    promised = """
        authority.client_credentials.grant authority.client_credentials.deny quota.created quota.adjusted quota.paused
        quota.resumed quota.deleted quota.refused quota.emergency quota.override_added quota.override_removed
        policy.changed backfill.requested backfill.duplicate_rejected backfill.paused backfill.resumed
        backfill.canceled backfill.completed backfill.failed lease.forced_out client.created client.disabled
        audit.exported audit.erased
    """

    assert set(promised.split()) <= set(Action)
