"""Threads that take leases and give them back, and remember what they were told."""

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from random import Random
from time import monotonic
from typing import Any, Self

import httpx2
from tests.acceptance.callers import Caller


@dataclass(eq=False)
class Held:
    """A lease somebody was told of: certainly held from *told* until *until* of this machine's clock."""

    lease: Mapping[str, Any]
    told: float
    until: float = float("inf")
    kept: bool = True
    """Nobody has tried to give it back."""


@dataclass
class Holders:
    """Several threads on one job type; each asks, and now and then gives one of its leases back."""

    caller: Caller
    job_type: str
    lease_seconds: int
    gives_back: bool
    seed: int
    threads: int = 3
    held: list[Held] = field(default_factory=list[Held])
    denials: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: list[threading.Thread] = field(default_factory=list[threading.Thread])

    def __enter__(self) -> Self:
        for number in range(self.threads):
            thread = threading.Thread(target=self._work, args=(Random(self.seed + number),))  # noqa: S311 - to be repeated
            self._running.append(thread)
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._running:
            thread.join()

    def _work(self, random: Random) -> None:
        with httpx2.Client(trust_env=False, timeout=20) as http:
            caller = replace(self.caller, http=http)
            while not self._stop.is_set():
                # What the dead server did not answer is not known: neither granted nor given back for certain.
                with suppress(httpx2.HTTPError):
                    mine = self._one_of_mine() if self.gives_back and random.random() < 0.5 else None
                    if mine is None:
                        self._ask(caller)
                    else:
                        self._give_back(caller, mine)

    def _ask(self, caller: Caller) -> None:
        asked = monotonic()
        answer = caller.post("/admissions", {"job_type": self.job_type, "lease_seconds": self.lease_seconds})
        with self._lock:
            if answer.status_code == 201:
                until = float("inf") if self.gives_back else asked + self.lease_seconds
                self.held.append(Held(answer.json(), monotonic(), until))
            self.denials += answer.status_code == 429
        assert answer.status_code in {201, 429, 503}, answer.text

    def _one_of_mine(self) -> Held | None:
        with self._lock:
            mine = next((held for held in self.held if held.kept), None)
            if mine is not None:
                mine.kept, mine.until = False, monotonic()
            return mine

    def _give_back(self, caller: Caller, mine: Held) -> None:
        token = {"fencing_token": mine.lease["fencing_token"]}
        answer = caller.post(f"/admissions/{mine.lease['lease_id']}/release", token)
        assert answer.status_code in {204, 503}, answer.text

    def kept(self) -> list[Mapping[str, Any]]:
        """Return the leases that nobody has tried to give back."""
        return [held.lease for held in self.held if held.kept]

    def most_at_once(self) -> int:
        """Return how many were certainly held at one moment, at the most."""
        turns = sorted([(held.told, 1) for held in self.held] + [(held.until, -1) for held in self.held])
        now = most = 0
        for _, turn in turns:
            now += turn
            most = max(most, now)
        return most
