"""The client for threads: it carries out the steps of a dialogue, and renews each lease from a thread of its own."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack

from jobengine.client import leasing
from jobengine.client.dialogue import Answer, Dialogue, Found, NeedToken, Patience, Pause, Send, Step, Steps
from jobengine.client.errors import ClientError, Denied, LeaseLost, Unavailable
from jobengine.client.grant import Ask, Grant, Wanted
from jobengine.client.leasing import Held
from jobengine.client.wire import http_options, tell_unreleased

Sleep = Callable[[float], object]


class _Stopped(BaseException):
    """Nobody needs the renewals any more."""


class Client:
    """One client of the authority at one server; threads may share it.

    *timeout* is in seconds for one answer. A forked child may go on using it: it makes connections of its own.
    """

    def __init__(
        self, url: str, client_id: str, client_secret: str, *, tenant: str | None = None, timeout: float = 10.0
    ) -> None:
        self._url = url
        self._dialogue = Dialogue(client_id, client_secret, tenant, timeout)
        self._closed = False
        self._open()

    def lease(self, job_type: str, *, wait: float = 0.0, **wanted: Unpack[Wanted]) -> "Lease":
        """Return a lease to be entered: it is acquired then, renewed while the block runs, and given back at its end.

        *wait* is how many seconds to wait for it; 0 asks once. Entering raises what `acquire` raises.
        """
        return Lease(self, Ask.of(job_type, wanted), wait)

    def acquire(self, job_type: str, *, wait: float = 0.0, **wanted: Unpack[Wanted]) -> Grant:
        """Return a grant that the caller renews and releases; raises Denied, JobIdConflict and what any call raises."""
        return self.run(leasing.acquire(self._dialogue, Ask.of(job_type, wanted), wait))

    def try_acquire(self, job_type: str, **wanted: Unpack[Wanted]) -> Grant | None:
        """Return a grant, or None where limits stand in the way."""
        try:
            return self.acquire(job_type, **wanted)
        except Denied:
            return None

    def renew(self, grant: Grant) -> Grant:
        """Return the grant with its new end; raises LeaseLost."""
        return self.run(leasing.renew(self._dialogue, grant, Patience()))

    def release(self, grant: Grant) -> None:
        """Give the slots back; raises LeaseLost when they were not held any more. Twice is fine."""
        self.run(leasing.release(self._dialogue, grant))

    def hold(self, ask: Ask, wait: float) -> Held:
        """Acquire, and return what keeps the lease."""
        return Held(self._dialogue, self.run(leasing.acquire(self._dialogue, ask, wait)))

    def close(self) -> None:
        """Close the connections; leases that are still kept are lost at their end."""
        self._closed = True
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, steps: Steps[Found], sleep: Sleep = time.sleep) -> Found:
        """Carry out a dialogue and return what came of it; *sleep* is how it pauses."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = self._carry_out(step, sleep)
                except ClientError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return end.value

    def _carry_out(self, step: Step, sleep: Sleep) -> object:
        match step:
            case Send():
                return self._send(step)
            case Pause(seconds):
                return sleep(seconds)
            case NeedToken(refused):
                self._after_fork()
                with self._token_lock:
                    return self.run(self._dialogue.token(refused), sleep)

    def _send(self, step: Send) -> Answer:
        if self._closed:
            raise Unavailable("the client is closed")
        self._after_fork()
        try:
            answer = self._http.post(step.path, headers=step.headers, content=step.body, timeout=step.timeout)
        except self._transport_error as error:
            raise Unavailable(f"no answer: {error or type(error).__name__}") from error
        return Answer(answer.status_code, answer.headers, answer.content)

    def _open(self) -> None:
        import httpx2  # noqa: PLC0415 - it is slow to import: only who makes a client pays

        self._http = httpx2.Client(**http_options(self._url))
        self._transport_error = httpx2.TransportError
        self._token_lock = threading.Lock()
        self._pid = os.getpid()

    def _after_fork(self) -> None:
        # The parent goes on using its connections and may hold its lock: a child has its own.
        if self._pid != os.getpid():
            self._open()


class Lease:
    """A lease for the length of a ``with`` block, renewed meanwhile from a thread.

    The block learns of a loss when it looks (`lost`) or asks (`check`, which raises LeaseLost), and at its end, which
    raises LeaseLost unless something else was raised before. Call `check` between steps, and give `grant.fencing_token`
    along with every write: a block that is stuck in one step hears nothing. The lease is the process's that entered the
    block: a forked child neither renews it nor gives it back.
    """

    def __init__(self, client: Client, ask: Ask, wait: float) -> None:
        self._client = client
        self._ask = ask
        self._wait = wait
        self._held: Held | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._pid = 0

    @property
    def grant(self) -> Grant:
        """The grant as the last renewal left it."""
        return self._known().grant

    @property
    def lost(self) -> bool:
        """Whether the lease is over, or nobody could confirm in time that it is not."""
        return self._known().lost

    def check(self) -> None:
        """Raise LeaseLost when the lease is lost."""
        self._known().check()

    def __enter__(self) -> Self:
        held = self._client.hold(self._ask, self._wait)
        self._held, self._pid = held, os.getpid()
        self._stop.clear()
        # A daemon: a program that ends without leaving the block must not wait for the lease.
        self._thread = threading.Thread(
            target=self._keep, args=(held,), name=f"lease {held.grant.lease_id}", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pid != os.getpid():
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
        try:
            tell_unreleased(self._client.run(self._known().leave()))
        except LeaseLost:
            if error is None:
                raise

    def _keep(self, held: Held) -> None:
        def sleep(seconds: float) -> None:
            if self._stop.wait(seconds):
                raise _Stopped

        with suppress(_Stopped):
            self._client.run(held.keep(), sleep)

    def _known(self) -> Held:
        if self._held is None:
            raise RuntimeError("enter the lease first")
        return self._held
