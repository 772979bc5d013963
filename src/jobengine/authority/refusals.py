"""Floods of refusals: the first of them are told one by one, the rest as a number; guessers of secrets are slowed.

Both meters live in the memory of one process and hold a bounded number of keys, the least recently seen go first.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from math import ceil
from typing import Final

from jobengine.audit.model import Actor
from jobengine.tenancy.model import PLATFORM

MINUTE: Final = timedelta(minutes=1)
SINGLE_REFUSALS_A_MINUTE: Final = 20
WRONG_SECRETS_A_MINUTE: Final = 100
MAX_KEYS: Final = 4096


@dataclass(frozen=True, slots=True)
class Source:
    """Whose refusals count together: a client that proved who it is, or else the *address* they came from."""

    actor: Actor
    address: str | None = None


UNAUTHENTICATED: Final = Actor("client", "unauthenticated")
OTHERS: Final = Source(Actor("system", "authority"))
"""The source of the summary that stands for floods pushed out of memory before their minute was over."""


@dataclass(frozen=True, slots=True)
class Single:
    """This refusal gets an audit entry of its own."""


@dataclass(frozen=True, slots=True)
class Counted:
    """This refusal is part of the next summary."""


@dataclass(frozen=True, slots=True)
class Summary:
    """*count* refusals of *source* without entries of their own, the first at *since*, the last at *until*.

    *log* is the tenant whose log they belong to, or the platform's.
    """

    source: Source
    log: str
    count: int
    since: datetime
    until: datetime

    def joined(self, other: "Summary | None") -> "Summary":
        """Return one summary for both, of this one's source and log.

        >>> one = Summary(OTHERS, PLATFORM, 2, datetime(2026, 1, 1), datetime(2026, 1, 2))
        >>> one.joined(Summary(OTHERS, PLATFORM, 3, datetime(2025, 1, 1), datetime(2026, 1, 1))).count
        5
        """
        if other is None:
            return self
        since, until = min(self.since, other.since), max(self.until, other.until)
        return replace(self, count=self.count + other.count, since=since, until=until)


@dataclass(slots=True)
class _Flood:
    singles: deque[datetime]
    counted: dict[str, Summary] = field(default_factory=dict[str, Summary])


@dataclass(slots=True)
class RefusalMeter:
    """Decides which refusals of one source are told singly: at most *limit* in any *window*, in all logs together."""

    limit: int = SINGLE_REFUSALS_A_MINUTE
    window: timedelta = MINUTE
    max_keys: int = MAX_KEYS
    _floods: OrderedDict[Source, _Flood] = field(default_factory=OrderedDict[Source, _Flood])
    _others: Summary | None = None

    def note(self, source: Source, log: str, now: datetime) -> Single | Counted:
        """Note one refusal of *source* at *now* that belongs to *log*."""
        flood = self._flood(source)
        if len(flood.singles) < self.limit or flood.singles[0] <= now - self.window:
            flood.singles.append(now)
            return Single()
        self.add(Summary(source, log, 1, now, now))
        return Counted()

    def add(self, summary: Summary) -> None:
        """Count refusals that could not be told: no entry of theirs was written, but the next summary has them."""
        if summary.source == OTHERS:
            self._others = summary.joined(self._others)
            return
        counted = self._flood(summary.source).counted
        counted[summary.log] = summary.joined(counted.get(summary.log))

    def due(self, now: datetime) -> list[Summary]:
        """Take the summaries whose window is over, and forget the sources that have been quiet."""
        over = now - self.window
        ready = [summary for summary in self._open() if summary.since <= over]
        for summary in ready:
            self._take(summary)
        for source, flood in list(self._floods.items()):
            if not flood.counted and (not flood.singles or flood.singles[-1] <= over):
                del self._floods[source]
        return ready

    def drain(self) -> list[Summary]:
        """Take every open summary, over or not: the process is about to end."""
        ready = list(self._open())
        self._floods.clear()
        self._others = None
        return ready

    def _flood(self, source: Source) -> _Flood:
        flood = self._floods.setdefault(source, _Flood(deque(maxlen=self.limit)))
        self._floods.move_to_end(source)
        while len(self._floods) > self.max_keys:
            _, pushed_out = self._floods.popitem(last=False)
            for summary in pushed_out.counted.values():
                self.add(replace(summary, source=OTHERS, log=PLATFORM))
        return flood

    def _open(self) -> Iterator[Summary]:
        for flood in self._floods.values():
            yield from flood.counted.values()
        if self._others is not None:
            yield self._others

    def _take(self, summary: Summary) -> None:
        if summary.source == OTHERS:
            self._others = None
        else:
            del self._floods[summary.source].counted[summary.log]


@dataclass(frozen=True, slots=True)
class Unthrottled:
    """The address may try."""


@dataclass(frozen=True, slots=True)
class Throttled:
    """The address sent too many wrong secrets; it may try again in *retry_after_seconds*."""

    retry_after_seconds: int


@dataclass(slots=True)
class SecretThrottle:
    """Slows an address down once it sent more than *limit* wrong secrets in a *window*; right ones cost nothing."""

    limit: int = WRONG_SECRETS_A_MINUTE
    window: timedelta = MINUTE
    max_keys: int = MAX_KEYS
    _wrong: OrderedDict[str, deque[datetime]] = field(default_factory=OrderedDict[str, deque[datetime]])

    def check(self, address: str, now: datetime) -> Unthrottled | Throttled:
        """Tell whether *address* may try at *now*; ask before the secret is looked at."""
        times = self._wrong.get(address, deque())
        if len(times) <= self.limit or times[0] <= now - self.window:
            return Unthrottled()
        return Throttled(max(1, ceil((times[0] + self.window - now).total_seconds())))

    def note_wrong(self, address: str, now: datetime) -> Unthrottled | Throttled:
        """Note one wrong secret, and tell how it is answered: as wrong, or already as one too many."""
        times = self._wrong.setdefault(address, deque(maxlen=self.limit + 1))
        times.append(now)
        self._wrong.move_to_end(address)
        while len(self._wrong) > self.max_keys:
            self._wrong.popitem(last=False)
        return self.check(address, now)
