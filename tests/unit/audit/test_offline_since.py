"""An export against a checkpoint that was kept from before."""

import pytest
from tests.unit.audit.offline import ENTRIES, EXPORT, Ask, resealed
from tests.unit.audit.samples import KEY, ORIGIN, OTHER_KEY, entry, export, note, salts

from jobengine.audit.checkpoint import Checkpoint, sign, verifier_key
from jobengine.audit.model import SealedEntry, seal


@pytest.mark.parametrize("size", [0, 1, 64, 100, 199, 200])
def test_an_export_continues_every_earlier_checkpoint(ask: Ask, size: int) -> None:
    """What was signed before is the beginning of what is signed now."""
    code, out = ask(EXPORT, since=note(ENTRIES[:size]))

    assert code == 0
    assert f"continues the earlier checkpoint of {size} entries" in out


def rewritten(at: int) -> list[SealedEntry]:
    """Return the log as its operator would rewrite it: one entry changed, and everything signed with the true key."""
    return [*ENTRIES[:at], seal(entry(at, reason="Another story"), salts()), *ENTRIES[at + 1 :]]


@pytest.mark.parametrize("size", [121, 200])
def test_a_rewritten_log_contradicts_an_earlier_checkpoint(ask: Ask, size: int) -> None:
    """Whoever holds the key can make a whole new log, and an old checkpoint tells."""
    forged = export(rewritten(120))

    code, out = ask(forged, since=note(ENTRIES[:size]))

    assert ask(forged)[0] == 0
    assert code == 1
    assert "the log was rewritten" in out
    assert f"one of index 0 to {size - 1}" in out


def test_an_earlier_checkpoint_narrows_the_search(ask: Ask) -> None:
    """What the earlier checkpoint vouches for is not among the suspects, and what it does not, is."""
    changed = resealed(120, trace_id="another")

    assert "one of index 100 to 199;" in ask(changed, since=note(ENTRIES[:100]))[1]
    assert "one of index 0 to 149;" in ask(changed, since=note(ENTRIES[:150]))[1]


def test_a_log_that_shrank_is_tampering(ask: Ask) -> None:
    """A shorter log, signed with the true key, does not continue a longer one."""
    code, out = ask(export(ENTRIES[:150]), since=note(ENTRIES))

    assert code == 1
    assert "the log had 200 entries before and has 150 now" in out
    assert "first bad entry: index 150 is missing\n" in out


@pytest.mark.parametrize(
    "since",
    [
        "",
        note(ENTRIES[:10]).replace("\n10\n", "\n11\n"),
        note(ENTRIES[:10], OTHER_KEY),
        note(ENTRIES[:10], origin="audit.example/log/else"),
        note(ENTRIES[:10]).replace("\n", "\r\n"),
    ],
)
def test_an_earlier_checkpoint_that_is_none_cannot_check(ask: Ask, since: str) -> None:
    """A damaged file of the auditor's own is no evidence against the export."""
    assert ask(EXPORT, since=since)[0] == 2


FORMER = str(verifier_key(ORIGIN, OTHER_KEY))


def test_a_checkpoint_of_a_former_key_is_continued(ask: Ask) -> None:
    """Keys change: the export is under the key of now, what was kept is under the key of its time."""
    kept = note(ENTRIES[:100], OTHER_KEY)

    code, out = ask(EXPORT, former=[FORMER], since=kept)

    assert code == 0
    assert "continues the earlier checkpoint of 100 entries" in out
    assert ask(EXPORT, since=kept)[0] == 2
    assert ask(export(rewritten(50)), former=[FORMER], since=kept)[0] == 1
    assert ask(EXPORT, former=[FORMER], since=kept.replace("\n100\n", "\n101\n"))[0] == 2


def test_a_former_key_signs_no_export(ask: Ask) -> None:
    """Else whoever finds an old key could write the log anew."""
    code, out = ask(export(rewritten(120), OTHER_KEY), former=[FORMER])

    assert code == 2
    assert "not signed by" in out


def test_keys_of_different_logs_cannot_check(ask: Ask) -> None:
    """The checkpoint of one log is no evidence about another."""
    other = "audit.example/log/else"
    kept = note(ENTRIES[:100], OTHER_KEY, origin=other)

    code, out = ask(EXPORT, former=[str(verifier_key(other, OTHER_KEY))], since=kept)

    assert code == 2
    assert "different logs" in out


def test_an_empty_checkpoint_with_a_false_root_is_not_continued(ask: Ask) -> None:
    """Even the tree of nothing has one root."""
    code, out = ask(EXPORT, since=sign(Checkpoint(ORIGIN, 0, bytes(32)), KEY))

    assert code == 1
    assert "none can be named" in out
