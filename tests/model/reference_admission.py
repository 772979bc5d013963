"""What admission does, said once more and simply: lists of leases and of moments, in microseconds of a told clock."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from math import floor

SECOND = 10**6
HOUR = 3600 * SECOND
DEFAULTS = {"max_active": 10, "max_per_hour": 1_000, "burst": 20, "refill_per_second": 1}
TOO_MANY = "too many"
Name = str | None  # a job type, or None for the tenant as a whole
Blocked = tuple[str, Name, int, int, int]  # limit, whose, maximum, used, requested


@dataclass(frozen=True)
class Ask:
    """A question for slots."""

    job_type: str
    slots: int = 1
    lease_seconds: int = 300
    job_id: str | None = None
    kind: str = "live"


@dataclass(eq=False)
class Override:
    """A raise of one limit between two times."""

    limit: str
    value: int
    starts: int
    until: int


@dataclass(eq=False)
class Quota:
    """Limits, the raises beside them, and whether it is paused."""

    quota_id: str
    base: dict[str, int | Fraction]
    paused: bool = False
    overrides: list[Override] = field(default_factory=list[Override])


@dataclass(eq=False)
class Lease:
    """A grant; *ended* is when somebody ended it, and *released* whether that was its holder."""

    ask: Ask
    lease_id: str
    token: int
    seconds: int
    expires: int
    ended: int | None = None
    released: bool = False


@dataclass
class Tenant:
    """One tenant at one moment."""

    now: int
    quotas: dict[Name, Quota] = field(default_factory=dict[Name, Quota])
    leases: list[Lease] = field(default_factory=list[Lease])
    granted: dict[Name, list[int]] = field(default_factory=lambda: defaultdict(list))
    buckets: dict[Name, tuple[Fraction | int, int]] = field(default_factory=dict[Name, tuple[Fraction | int, int]])
    tokens: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def raises(self, name: Name) -> list[Override]:
        """Return the raises that have begun; one that has not is not counted on."""
        return [one for one in self.quotas[name].overrides if one.starts <= self.now] if name in self.quotas else []

    def limit(self, name: Name, limit: str, at: int) -> Fraction | int:
        """Return a limit at a time."""
        base = self.quotas[name].base if name in self.quotas else DEFAULTS
        held = [one.value for one in self.raises(name) if one.limit == limit and one.starts <= at < one.until]
        return max([base[limit], *held])

    def live(self, at: int | None = None) -> list[Lease]:
        """Return the leases that hold at a time if nobody ends or renews them before."""
        return [one for one in self.leases if one.ended is None and one.expires > (self.now if at is None else at)]

    def held(self, name: Name, at: int, kinds: str = "live backfill") -> int:
        """Return the slots in use."""
        mine = [one.ask for one in self.live(at) if name in {None, one.ask.job_type} and one.ask.kind in kinds]
        return sum(ask.slots for ask in mine)

    def hour(self, name: Name, at: int) -> int:
        """Return the admissions of the hour before a time."""
        return sum(moment > at - HOUR for moment in self.granted[name])

    def level(self, name: Name, at: int) -> Fraction | int:
        """Return the tokens in the bucket: each limit acts while it holds, and on nothing before or after."""
        left, since = self.buckets.get(name, (self.limit(name, "burst", at), at))
        turns = [turn for one in self.raises(name) for turn in (one.starts, one.until) if since < turn < at]
        for until in [*sorted(turns), at]:
            left += Fraction(until - since, SECOND) * self.limit(name, "refill_per_second", since)
            left, since = min(left, self.limit(name, "burst", since)), until
        return min(left, self.limit(name, "burst", at))

    def change(self, name: Name, limit: str, value: int) -> None:
        """Set a limit from now on."""
        if name in self.buckets:
            self.buckets[name] = self.level(name, self.now), self.now
        self.quotas[name].base[limit] = value

    def concerned(self, job_type: str) -> list[Name]:
        """Return whose limits an ask meets: without a quota a job type has the defaults, and a tenant no limit."""
        return [*([None] if None in self.quotas else []), job_type]

    def blocking(self, ask: Ask, at: int | None = None) -> list[Blocked] | str:
        """Return every limit that stands in the way at a time."""
        moment = self.now if at is None else at
        names = self.concerned(ask.job_type)
        if any(ask.slots > self.limit(name, "max_active", moment) for name in names):
            return TOO_MANY
        return [found for name in names for found in self.blocking_of(ask, name, moment)]

    def blocking_of(self, ask: Ask, name: Name, at: int) -> Iterator[Blocked]:
        """Return the limits of one quota that stand in the way at a time."""
        most, hourly, burst = (int(self.limit(name, limit, at)) for limit in ("max_active", "max_per_hour", "burst"))
        held, share, of_backfills = self.held(name, at), max(1, most // 2), self.held(name, at, "backfill")
        if name in self.quotas and self.quotas[name].paused:
            yield "paused", name, most, held, ask.slots
        if held + ask.slots > most:
            yield "max_active", name, most, held, ask.slots
        if ask.kind == "backfill" and of_backfills + ask.slots > share:
            yield "max_active", name, share, of_backfills, ask.slots
        if self.hour(name, at) >= hourly:
            yield "max_per_hour", name, hourly, self.hour(name, at), 1
        if self.level(name, at) < 1:
            yield "rate", name, burst, burst - floor(self.level(name, at)), 1

    def same_job(self, ask: Ask) -> Lease | None:
        """Return the live lease of the job."""
        return next((one for one in self.live() if ask.job_id is not None and one.ask.job_id == ask.job_id), None)

    def grant(self, ask: Ask, lease_id: str) -> Lease:
        """Take what an admission takes."""
        for name in self.concerned(ask.job_type):
            self.buckets[name] = self.level(name, self.now) - 1, self.now
        for name in (None, ask.job_type):
            self.granted[name].append(self.now)
        self.tokens[ask.job_type] += 1
        end = self.now + ask.lease_seconds * SECOND
        self.leases.append(Lease(ask, lease_id, self.tokens[ask.job_type], ask.lease_seconds, end))
        return self.leases[-1]
