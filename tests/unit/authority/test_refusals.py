from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobengine.audit.model import Actor
from jobengine.authority.refusals import (
    OTHERS,
    UNAUTHENTICATED,
    Counted,
    RefusalMeter,
    SecretThrottle,
    Single,
    Source,
    Summary,
    Throttled,
    Unthrottled,
)
from jobengine.tenancy.model import PLATFORM

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def client(name: str) -> Source:
    return Source(Actor("client", f"owner of {name}", name))


def flood(meter: RefusalMeter, name: str, count: int, seconds: float = 0, log: str = "acme") -> list[Single | Counted]:
    return [meter.note(client(name), log, at(seconds)) for _ in range(count)]


def test_the_first_twenty_in_a_minute_are_told_singly() -> None:
    """From the next one on they are counted."""
    assert flood(RefusalMeter(), "c", 22) == [Single()] * 20 + [Counted()] * 2


def test_the_counted_ones_become_one_summary_when_their_minute_is_over() -> None:
    """It says how many there were and from when to when, and is given out once."""
    meter = RefusalMeter()
    flood(meter, "c", 25)
    flood(meter, "c", 3, seconds=30)

    assert meter.due(at(59.9)) == []
    assert meter.due(at(60)) == [Summary(client("c"), "acme", 8, at(0), at(30))]
    assert meter.due(at(120)) == []
    assert meter.drain() == []


def test_one_caller_does_not_use_up_the_entries_of_another() -> None:
    """Each key has its own twenty."""
    meter = RefusalMeter()
    flood(meter, "c", 100)

    assert flood(meter, "d", 1) == [Single()]


def test_a_lasting_flood_gets_twenty_entries_and_one_summary_a_minute() -> None:
    """Ten a second for five minutes: the log stays readable, the count stays whole."""
    meter = RefusalMeter()
    singles, counted = 0, 0
    for tenth in range(3000):
        singles += meter.note(client("c"), "acme", at(tenth / 10)) == Single()
        counted += sum(summary.count for summary in meter.due(at(tenth / 10)))
    rest = meter.drain()

    assert singles <= 20 * 6
    assert singles + counted + sum(summary.count for summary in rest) == 3000
    assert len(rest) == 1


def test_a_client_of_many_tenants_has_one_limit_and_a_summary_in_each_log() -> None:
    """Going from tenant to tenant gains nothing, and each tenant reads what concerned it."""
    meter = RefusalMeter()
    flood(meter, "c", 20, log="acme")

    assert flood(meter, "c", 2, log="globex") == [Counted(), Counted()]
    assert flood(meter, "c", 1, log="acme") == [Counted()]
    assert {(summary.log, summary.count) for summary in meter.due(at(60))} == {("globex", 2), ("acme", 1)}


def test_addresses_and_clients_count_apart() -> None:
    """What an address sent without proof is not held against the client it named."""
    meter = RefusalMeter()
    address = Source(UNAUTHENTICATED, "192.0.2.7")
    for _ in range(30):
        meter.note(address, PLATFORM, at(0))

    assert flood(meter, "c", 1) == [Single()]
    assert meter.drain() == [Summary(address, PLATFORM, 10, at(0), at(0))]


@pytest.mark.parametrize("source", [client("c"), OTHERS])
def test_a_summary_that_could_not_be_written_joins_the_next(source: Source) -> None:
    """Nothing counted is lost to a database that is away for a while."""
    meter = RefusalMeter()
    meter.add(Summary(source, "acme", 3, at(0), at(10)))
    (unwritten,) = meter.due(at(60))
    meter.add(Summary(source, "acme", 2, at(61), at(62)))
    meter.add(unwritten)

    assert meter.due(at(63)) == [Summary(source, "acme", 5, at(0), at(62))]
    assert meter.due(at(200)) == []
    assert not meter._floods


def test_a_quiet_key_is_forgotten() -> None:
    """Memory holds the last minute only."""
    meter = RefusalMeter()
    flood(meter, "c", 5)
    meter.due(at(60))

    assert not meter._floods


def test_a_flood_pushed_out_of_memory_is_still_counted() -> None:
    """Whoever comes from many addresses cannot make counts vanish, or grow the memory."""
    meter = RefusalMeter(max_keys=10)
    for number in range(50):
        flood(meter, f"address-{number}", 21)

    assert len(meter._floods) == 10
    summaries = {(summary.source, summary.log): summary.count for summary in meter.due(at(60))}
    assert summaries[OTHERS, PLATFORM] == 40
    assert sum(summaries.values()) == 50
    assert meter.drain() == []


def test_open_summaries_are_taken_when_the_process_ends() -> None:
    """Nothing counted is lost on the way out."""
    meter = RefusalMeter()
    flood(meter, "c", 21)

    assert meter.drain() == [Summary(client("c"), "acme", 1, at(0), at(0))]
    assert meter.drain() == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=120))
@settings(deadline=None)
def test_no_minute_holds_more_single_entries_than_the_limit(steps: list[tuple[str, int]]) -> None:
    """Wherever the minute begins, and nothing is lost between entries and summaries."""
    meter = RefusalMeter(limit=3, max_keys=2)
    singles: dict[str, list[float]] = {}
    now, told = 0.0, 0
    for key, gap in steps:
        now += gap
        told += sum(summary.count for summary in meter.due(at(now)))
        if meter.note(client(key), "acme", at(now)) == Single():
            singles.setdefault(key, []).append(now)
    told += sum(summary.count for summary in meter.drain()) + sum(map(len, singles.values()))

    assert told == len(steps)
    assert len(meter._floods) == 0


@given(st.lists(st.integers(0, 40), max_size=80))
@settings(deadline=None)
def test_any_rolling_minute_of_one_key_keeps_the_limit(gaps: list[int]) -> None:
    """The limit does not start afresh when the clock's minute does."""
    meter, now = RefusalMeter(limit=3), 0.0
    singles: list[float] = []
    for gap in gaps:
        now += gap
        meter.due(at(now))
        if meter.note(client("c"), "acme", at(now)) == Single():
            singles.append(now)

    assert all(later - earlier >= 60 for earlier, later in zip(singles, singles[3:], strict=False))


def test_a_hundred_wrong_secrets_a_minute_slow_nobody_down() -> None:
    """Throttling starts only above them: the right secret still works after a hundred wrong ones."""
    throttle = SecretThrottle()

    assert [throttle.note_wrong("10.0.0.1", at(0)) for _ in range(100)] == [Unthrottled()] * 100
    assert throttle.check("10.0.0.1", at(0)) == Unthrottled()


def test_the_next_wrong_secret_closes_the_address_until_the_minute_is_over() -> None:
    """The answer says when to come back, and keeping on asking does not push that further away."""
    throttle = SecretThrottle()
    for number in range(100):
        throttle.note_wrong("10.0.0.1", at(number / 10))

    assert throttle.note_wrong("10.0.0.1", at(30)) == Throttled(30)
    assert throttle.check("10.0.0.1", at(59.5)) == Throttled(1)
    assert throttle.check("10.0.0.1", at(60)) == Unthrottled()
    assert throttle.check("10.0.0.2", at(30)) == Unthrottled()


@pytest.mark.parametrize("addresses", [11, 500])
def test_the_throttle_remembers_a_bounded_number_of_addresses(addresses: int) -> None:
    """The one seen last is among them."""
    throttle = SecretThrottle(max_keys=10)
    for number in range(addresses):
        throttle.note_wrong(f"address-{number}", at(number))

    assert len(throttle._wrong) == 10
    assert f"address-{addresses - 1}" in throttle._wrong
