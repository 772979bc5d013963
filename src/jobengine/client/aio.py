"""The client for asyncio: the same dialogues, and a task that renews each lease."""

import asyncio
from types import TracebackType
from typing import Self, Unpack

import httpx2

from jobengine.client import leasing
from jobengine.client.dialogue import Answer, Dialogue, Found, NeedToken, Patience, Pause, Send, Step, Steps
from jobengine.client.errors import ClientError, Denied, LeaseLost, Unavailable
from jobengine.client.grant import Ask, Grant, Wanted
from jobengine.client.leasing import Held
from jobengine.client.wire import http_options, tell_unreleased


class AsyncClient:
    """One client of the authority at one server, for the tasks of one event loop; see `Client`."""

    def __init__(
        self, url: str, client_id: str, client_secret: str, *, tenant: str | None = None, timeout: float = 10.0
    ) -> None:
        self._dialogue = Dialogue(client_id, client_secret, tenant, timeout)
        self._http = httpx2.AsyncClient(**http_options(url))
        self._token_lock = asyncio.Lock()

    def lease(self, job_type: str, *, wait: float = 0.0, **wanted: Unpack[Wanted]) -> "AsyncLease":
        """Return a lease to be entered with ``async with``; see `Client.lease`."""
        return AsyncLease(self, Ask.of(job_type, wanted), wait)

    async def acquire(self, job_type: str, *, wait: float = 0.0, **wanted: Unpack[Wanted]) -> Grant:
        """Return a grant that the caller renews and releases; raises Denied, JobIdConflict and what any call raises."""
        return await self.run(leasing.acquire(self._dialogue, Ask.of(job_type, wanted), wait))

    async def try_acquire(self, job_type: str, **wanted: Unpack[Wanted]) -> Grant | None:
        """Return a grant, or None where limits stand in the way."""
        try:
            return await self.acquire(job_type, **wanted)
        except Denied:
            return None

    async def renew(self, grant: Grant) -> Grant:
        """Return the grant with its new end; raises LeaseLost."""
        return await self.run(leasing.renew(self._dialogue, grant, Patience()))

    async def release(self, grant: Grant) -> None:
        """Give the slots back; raises LeaseLost when they were not held any more. Twice is fine."""
        await self.run(leasing.release(self._dialogue, grant))

    async def hold(self, ask: Ask, wait: float) -> Held:
        """Acquire, and return what keeps the lease."""
        return Held(self._dialogue, await self.run(leasing.acquire(self._dialogue, ask, wait)))

    async def close(self) -> None:
        """Close the connections; leases that are still kept are lost at their end."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def run(self, steps: Steps[Found]) -> Found:
        """Carry out a dialogue and return what came of it."""
        try:
            step = next(steps)
            while True:
                try:
                    reply = await self._carry_out(step)
                except ClientError as failure:
                    step = steps.throw(failure)
                else:
                    step = steps.send(reply)
        except StopIteration as end:
            return end.value

    async def _carry_out(self, step: Step) -> object:
        match step:
            case Send():
                return await self._send(step)
            case Pause(seconds):
                return await asyncio.sleep(seconds)
            case NeedToken(refused):
                async with self._token_lock:
                    return await self.run(self._dialogue.token(refused))

    async def _send(self, step: Send) -> Answer:
        if self._http.is_closed:
            raise Unavailable("the client is closed")
        try:
            answer = await self._http.post(step.path, headers=step.headers, content=step.body, timeout=step.timeout)
        except httpx2.TransportError as error:
            raise Unavailable(f"no answer: {error or type(error).__name__}") from error
        return Answer(answer.status_code, answer.headers, answer.content)


class AsyncLease:
    """A lease for the length of an ``async with`` block, renewed meanwhile by a task; see `Lease`.

    The block is not cancelled when the lease is lost: it learns of it from `lost`, from `check`, and at its end.
    """

    def __init__(self, client: AsyncClient, ask: Ask, wait: float) -> None:
        self._client = client
        self._ask = ask
        self._wait = wait
        self._held: Held | None = None
        self._task: asyncio.Task[None] | None = None

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

    async def __aenter__(self) -> Self:
        self._held = await self._client.hold(self._ask, self._wait)
        self._task = asyncio.create_task(self._client.run(self._held.keep()), name=f"lease {self.grant.lease_id}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        try:
            tell_unreleased(await self._client.run(self._known().leave()))
        except LeaseLost:
            if error is None:
                raise

    def _known(self) -> Held:
        if self._held is None:
            raise RuntimeError("enter the lease first")
        return self._held
