"""The broker as the relay sees it: how many wake-ups lie there, and more of them.

Celery is an extra: whoever runs without a broker imports nothing of it.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from typing import Any, Final, TypeVar

from jobengine.errors import Unavailable
from jobengine.storage.outbox import WakeUp
from jobengine.worker.wake_ups import TASK, make_app, queue_of

CONFIRM_SECONDS: Final = 5

_Found = TypeVar("_Found")


class Broker:
    """RabbitMQ or Redis at *url*; every call may raise Unavailable, and the next one connects again."""

    def __init__(self, url: str, prefix: str) -> None:
        self._app: Any = make_app(url, prefix)
        self._prefix = prefix
        # The library tells no types.
        self._connection: Any = None
        # The client library blocks, and its connections are for one thread.
        self._thread = ThreadPoolExecutor(1, "broker")

    async def depths(self, job_types: Sequence[str]) -> Mapping[str, int]:
        """Return how many wake-ups wait in the queue of each job type; a queue that is not there is made."""
        return await self._call(lambda connection: {name: self._depth(connection, name) for name in job_types})

    async def send(self, wake_ups: Sequence[WakeUp]) -> None:
        """Send *wake_ups*; what is confirmed survives a restart of the broker."""
        await self._call(lambda connection: self._send(connection, wake_ups))

    async def close(self) -> None:
        """Hang up."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._hang_up)
        self._thread.shutdown(wait=False)

    async def _call(self, work: Callable[[Any], _Found]) -> _Found:
        def call() -> _Found:
            try:
                if self._connection is None:
                    self._connection = self._app.connection_for_write()
                return work(self._connection)
            except Exception as error:  # noqa: BLE001 - each transport has errors of its own
                self._hang_up()
                # The library's own words may hold the address, and with it the password.
                raise Unavailable(f"the broker does not answer: {type(error).__name__}") from None

        return await asyncio.get_running_loop().run_in_executor(self._thread, call)

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def _depth(self, connection: Any, job_type: str) -> int:
        channel = connection.default_channel
        queue = queue_of(self._prefix, job_type)(channel)
        queue.declare()
        # Said again, as it is: the answer tells how many messages wait. Redis knows no passive question.
        how = {"durable": True, "auto_delete": False, "arguments": queue.queue_arguments}
        return channel.queue_declare(queue.name, **how).message_count

    def _send(self, connection: Any, wake_ups: Sequence[WakeUp]) -> None:
        producer = self._app.amqp.Producer(connection.default_channel, auto_declare=False)
        for wake_up in wake_ups:
            self._app.send_task(
                TASK,
                kwargs=asdict(wake_up),
                producer=producer,
                queue=queue_of(self._prefix, wake_up.job_type),
                ignore_result=True,
                retry=False,
                confirm_timeout=CONFIRM_SECONDS,
            )
