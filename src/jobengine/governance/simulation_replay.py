"""What limits would have done: recorded asks decided again, by the same arithmetic as when they were asked.

The record is one `Moment` for each transaction that decided anything. A lease of the record ends in the replay as it
ended then; of an ask that was denied then and is granted now nobody knows how long its work would have run: it holds
its slots as long as the leases of its job type did on average so far, or its own lease, where none has ended yet.
"""

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from heapq import heappop, heappush
from typing import Final

from jobengine.governance.simulation import (
    BACKFILL,
    END,
    EXPIRED,
    GRANTED,
    SECOND,
    WHOLE_TENANT,
    Moment,
    Question,
    Simulation,
    Told,
)
from jobengine.quota.standing import MAX_PER_HOUR, RATE, TOKEN, Standing

HOUR: Final = 3_600 * SECOND
_LAPSED: Final = END | EXPIRED
_BY_TIME: Final = RATE | MAX_PER_HOUR
_MILLI: Final = 1_000
# What became of an ask: granted then, granted now.
_DENIED: Final = 0
_THEN: Final = 1
_NOW: Final = 2
# Since when a lease of the record is held that is not held here.
_NEVER: Final = -1


def simulate(moments: Iterable[Moment], question: Question) -> Simulation:
    """Decide the recorded asks again under the limits of *question*; *moments* stand in the order of their making."""
    replay = Replay(question)
    for moment in moments:
        replay.relive(moment)
    return replay.result()


@dataclass(slots=True)
class _Holder:
    """One account in the replay: its standing, when the hour's admissions were, and how long its leases held.

    *held* says since when each lease of the record is held, by its token.
    """

    name: str
    standing: Standing
    limited: bool = True
    counts: bool = False
    hour: deque[int] = field(default_factory=deque[int])
    held: dict[int, int] = field(default_factory=dict[int, int])
    ended: int = 0
    held_micros: int = 0

    def forget_hour(self, micros: int) -> None:
        """Let the admissions go that have left the rolling hour."""
        hour, since, before = self.hour, micros - HOUR, len(self.hour)
        while hour and hour[0] <= since:
            hour.popleft()
        self.standing.granted_hour -= before - len(hour)

    def ready_at(self, bits: int, micros: int) -> int | None:
        """Return when time alone will have lifted the limits in *bits*; None where it never does."""
        standing, ready = self.standing, micros
        if bits & ~_BY_TIME:
            return None
        if bits & MAX_PER_HOUR:
            if standing.max_per_hour < 1:
                return None
            ready = max(ready, self.hour[standing.granted_hour - standing.max_per_hour] + HOUR)
        if bits & RATE:
            if standing.full < TOKEN or standing.refill == 0:
                return None
            ready = max(ready, micros - (standing.level_pico(micros) - TOKEN) // standing.refill)
        return ready


@dataclass(slots=True)
class _Queue:
    """Denied asks of one kind that wait to be granted, by slots: what blocks few slots blocks more."""

    sizes: list[int] = field(default_factory=list[int])
    since: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    ready: int | None = None

    def add(self, slots: int, micros: int) -> None:
        waiting = self.since.get(slots)
        if waiting is None:
            insort(self.sizes, slots)
            waiting = self.since[slots] = []
        waiting.append(micros)


class Replay:
    """The tenant's accounts as they would have been, moment by moment."""

    def __init__(self, question: Question) -> None:
        self._question = question
        self._holders: dict[str, _Holder] = {}
        self._whole = self._asked = _Holder(WHOLE_TENANT, Standing())
        self._lowered: list[_Holder] = []
        # Leases that are held only here, by their ends.
        self._extra: list[tuple[int, int, _Holder, int, int]] = []
        self._queues: dict[tuple[str, int], _Queue] = {}
        self._waits: list[int] = []
        self._digest = sha256()
        self._asks = self._granted = self._would_grant = self._peak = self._changed = self._seen = 0
        self._first_at: int | None = None
        self._last_at: int | None = None

    def relive(self, moment: Moment) -> None:
        """Decide the asks of the next moment."""
        holders = self._hear_all(moment)
        at = moment.at
        ask = self._ask if at >= self._question.since else self._recall
        decided = bytearray()
        arrived = freed = False
        for kind, place, slots, seconds, token in zip(
            moment.kinds, moment.places, moment.slots, moment.seconds, moment.tokens, strict=True
        ):
            holder = holders[place]
            if kind & _LAPSED == _LAPSED:
                self._lapse(holder, kind, slots, token, at - seconds * _MILLI)
                continue
            if not arrived:
                arrived = self._arrive(holders, at)
            if kind & END:
                self._end(holder, kind, slots, token, at)
                freed = True
                continue
            if freed:
                freed = self._look(at)
            decision = ask(holder, kind, slots, at, (token, seconds))
            if holder.counts:
                decided.append(decision)
        self._close(at, decided)

    def result(self) -> Simulation:
        """Return what became of the asks until now."""
        return Simulation(
            self._asks, self._granted, self._would_grant, self._peak, self._wait_p95(), self._changed, self._first_at,
            self._last_at, self._digest.hexdigest(),
        )  # fmt: skip

    def _close(self, at: int, decided: bytearray) -> None:
        if at < self._question.since:
            self._peak = self._asked.standing.active
            return
        self._look(at)
        if decided:
            self._digest.update(at.to_bytes(8, "big") + decided)
            self._first_at = at if self._first_at is None else self._first_at
            self._last_at = at
            kept, lost, won = (decided.count(decision) for decision in (_THEN | _NOW, _THEN, _NOW))
            self._asks += len(decided)
            self._granted += kept + lost
            self._would_grant += kept + won
            self._changed += lost + won

    def _hear_all(self, moment: Moment) -> list[_Holder]:
        for told in moment.told:
            self._hear(told)
        if moment.waits or self._lowered:
            self._let_wait(moment.waits)
        return [self._holders.get(name) or self._stranger(name) for name in moment.accounts]

    def _hear(self, told: Told) -> None:
        holder = self._holders.get(told.account)
        if holder is None:
            holder = self._holders[told.account] = _Holder(told.account, _standing(told))
            holder.hour.extend([told.hour_at] * told.granted_hour)
        else:
            self._count_bucket(holder.standing, told)
        tried = self._question.limits if told.account == self._question.account else None
        holder.standing.limit(tried or told.limits, told.share, paused=told.paused, waits=False)
        holder.limited = told.limited or tried is not None
        holder.counts = self._question.account in (told.account, WHOLE_TENANT)
        if told.account == WHOLE_TENANT:
            self._whole = holder
        if told.account == self._question.account:
            self._asked = holder

    def _stranger(self, name: str) -> _Holder:
        # Leases ended of a job type that nobody has asked for since the reading began: its use is told when it asks.
        return _Holder(name, Standing())

    def _count_bucket(self, standing: Standing, told: Told) -> None:
        # What was refilled before a change of limits was refilled at the old rate.
        if self._question.limits is None:
            standing.level, standing.level_at = told.level, told.level_at
        else:
            standing.settle(told.level_at)

    def _let_wait(self, waits: Sequence[str]) -> None:
        for holder in self._lowered:
            holder.standing.leave_one(waits=False)
        self._lowered = [self._holders[name] for name in waits]
        for holder in self._lowered:
            holder.standing.leave_one(waits=True)

    def _arrive(self, holders: Sequence[_Holder], at: int) -> bool:
        while self._extra and self._extra[0][0] <= at:
            ends, _, holder, slots, kind = heappop(self._extra)
            self._lapse(holder, kind, slots, 0, ends)
        self._pass_time(at)
        for holder in holders:
            holder.forget_hour(at)
        return True

    def _recall(self, holder: _Holder, kind: int, slots: int, at: int, lease: tuple[int, int]) -> int:
        # As it was decided: before the time that is asked about.
        if kind & GRANTED:
            self._take(holder, slots, at, kind & BACKFILL)
            holder.held[lease[0]] = at
        return _DENIED

    def _ask(self, holder: _Holder, kind: int, slots: int, at: int, lease: tuple[int, int]) -> int:
        backfill, whole = kind & BACKFILL, self._whole
        if holder.standing.blocked(slots, at, backfill) or (
            whole.limited and whole.standing.blocked(slots, at, backfill)
        ):
            return self._deny(holder, kind, slots, at, lease[0])
        self._take(holder, slots, at, backfill)
        if kind & GRANTED:
            holder.held[lease[0]] = at
            return _THEN | _NOW
        self._hold(holder, kind, slots, at, lease[1])
        return _NOW

    def _deny(self, holder: _Holder, kind: int, slots: int, at: int, token: int) -> int:
        if holder.counts:
            key = holder.name, kind & BACKFILL
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = _Queue()
            queue.add(slots, at)
        if not kind & GRANTED:
            return _DENIED
        holder.held[token] = _NEVER
        return _THEN

    def _take(self, holder: _Holder, slots: int, at: int, backfill: int) -> None:
        whole = self._whole
        holder.standing.take(slots, at, backfill)
        holder.hour.append(at)
        whole.hour.append(at)
        if whole.limited:
            whole.standing.take(slots, at, backfill)
        else:
            whole.standing.take_uncounted(slots, backfill)
        if (active := self._asked.standing.active) > self._peak:
            self._peak = active

    def _hold(self, holder: _Holder, kind: int, slots: int, at: int, seconds: int) -> None:
        held = holder.held_micros // holder.ended if holder.ended else seconds * SECOND
        self._seen += 1
        heappush(self._extra, (at + held, self._seen, holder, slots, kind & BACKFILL))

    def _lapse(self, holder: _Holder, kind: int, slots: int, token: int, micros: int) -> None:
        if not self._queues:
            self._end(holder, kind, slots, token, micros)
            return
        self._pass_time(micros)
        self._end(holder, kind, slots, token, micros)
        self._look(micros)

    def _end(self, holder: _Holder, kind: int, slots: int, token: int, micros: int) -> None:
        since = holder.held.pop(token, None)
        if since == _NEVER:
            return
        backfill = kind & BACKFILL
        holder.standing.give_back(slots, backfill)
        self._whole.standing.give_back(slots, backfill)
        if since is not None:
            holder.ended += 1
            holder.held_micros += micros - since

    def _pass_time(self, micros: int) -> None:
        """Let go whoever waited for nothing but the clock."""
        for (name, backfill), queue in self._queues.items():
            while queue.ready is not None and queue.ready <= micros:
                self._let_go(queue, queue.ready)
                self._ask_again(self._holders[name], queue, queue.ready, backfill)

    def _look(self, micros: int) -> bool:
        """Let go whoever would be granted now; a queue that is empty is forgotten. False: nothing is newly free."""
        for (name, backfill), queue in list(self._queues.items()):
            self._ask_again(self._holders[name], queue, micros, backfill)
            if not queue.sizes:
                del self._queues[name, backfill]
        return False

    def _ask_again(self, holder: _Holder, queue: _Queue, micros: int, backfill: int) -> None:
        queue.ready = None
        accounts = [holder, *([self._whole] if self._whole.limited else [])]
        for account in accounts:
            account.forget_hour(micros)
        while queue.sizes:
            bits = [account.standing.blocked(queue.sizes[0], micros, backfill) for account in accounts]
            if any(bits):
                ready = [account.ready_at(found, micros) for account, found in zip(accounts, bits, strict=True)]
                known = [moment for moment in ready if moment is not None]
                queue.ready = max(known) if len(known) == len(ready) else None
                return
            self._let_go(queue, micros)

    def _let_go(self, queue: _Queue, micros: int) -> None:
        asked = queue.since.pop(queue.sizes.pop(0))
        self._waits += [micros - since for since in asked]

    def _wait_p95(self) -> int | None:
        # Nearest rank; those who would have been granted at once stand first, with 0.
        rank = -(-self._asks * 95 // 100) - self._would_grant
        if rank <= 0:
            return 0
        return sorted(self._waits)[rank - 1] if rank <= len(self._waits) else None


def _standing(told: Told) -> Standing:
    standing = Standing()
    standing.active, standing.active_backfill = told.active, told.active_backfill
    standing.granted_hour, standing.level, standing.level_at = told.granted_hour, told.level, told.level_at
    return standing
