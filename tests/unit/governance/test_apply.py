"""One step of an apply, and many of them by several hands: whatever dies and comes late, the capacity holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobengine.governance.apply import STAGES, Broken, Done, Found, Give, Mark, Stage, Step, decide

FRESH = Mark(0, 1)
RAISE, CUT, NEW = Step("a", "q", 5, 9), Step("a", "q", 9, 5), Step("a", None, 10, 4)


def found(max_active: int, quota_id: str = "q", *, overridden: bool = False) -> Found:
    return Found(quota_id, max_active, overridden)


@pytest.mark.parametrize(
    ("step", "stage", "mark", "quota", "expected"),
    [
        (RAISE, 1, FRESH, found(5), Give(5)),
        (RAISE, 2, Mark(7, 1), found(5), Give(9)),
        (CUT, 1, FRESH, found(9), Give(5)),
        (CUT, 1, Mark(7, 1), found(5), Done()),
        (CUT, 1, Mark(7, 2), found(5), Done()),
        (CUT, 1, Mark(8, 1), found(9), Broken()),
        (CUT, 1, FRESH, found(8), Broken()),
        (CUT, 1, FRESH, None, Broken()),
        (CUT, 1, FRESH, found(9, "other"), Broken()),
        (CUT, 1, FRESH, found(9, overridden=True), Broken()),
        (RAISE, 2, Mark(7, 1), found(4), Broken()),
        (RAISE, 2, Mark(7, 2), found(3), Done()),
        (NEW, 1, FRESH, None, Give(4)),
        (NEW, 1, FRESH, found(4), Broken()),
        (Step("a", None, 4, 9), 2, Mark(7, 1), found(4, "made"), Give(9)),
    ],
)
def test_a_step_is_decided_by_what_stands_there(
    step: Step, stage: Stage, mark: Mark, quota: Found | None, expected: object
) -> None:
    """A lowered, deleted, replaced or overridden quota breaks it; what is done stays done."""
    assert decide(step, stage, 7, mark, quota) == expected


class Hand:
    """A process that carries an apply from its beginning, at whatever pace."""

    def __init__(self, epoch: int, steps: list[Step]) -> None:
        self._left = [(step, stage) for stage in STAGES for step in steps]
        self._epoch = epoch

    def take(self, limits: dict[str, int], marks: dict[str, Mark]) -> None:
        """Take the next step in its tenant's transaction; what is broken ends it."""
        if not self._left:
            return
        step, stage = self._left.pop(0)
        tenant = step.tenant_id
        match decide(step, stage, self._epoch, marks[tenant], found(limits[tenant])):
            case Give(max_active):
                limits[tenant], marks[tenant] = max_active, Mark(self._epoch, stage)
            case Broken():
                self._left.clear()
            case Done():
                pass


@given(st.data())
def test_at_no_moment_do_the_limits_sum_to_more_than_before_or_after(data: st.DataObject) -> None:
    """Two applies, one after the other was given up, each by several processes that pause and come late."""
    shares = st.lists(st.integers(0, 50), min_size=4, max_size=4)
    limits = dict(zip("abcd", data.draw(shares), strict=True))
    marks = dict.fromkeys("abcd", FRESH)
    most, hands = sum(limits.values()), list[Hand]()
    for epoch in (1, 2):
        wanted = dict(zip("abcd", data.draw(shares), strict=True))
        most = max(sum(limits.values()), sum(wanted.values()), most)
        steps = [Step(tenant, "q", limits[tenant], wanted[tenant]) for tenant in "abcd"]
        hands += [Hand(epoch, steps) for _ in range(2)]
        for _ in range(data.draw(st.integers(0, 30))):
            data.draw(st.sampled_from(hands)).take(limits, marks)
            assert sum(limits.values()) <= most
