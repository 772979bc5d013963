"""RabbitMQ and Redis on this machine, as tests look behind the relay's back: counting, losing, repeating messages."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from kombu import Connection, Producer

from jobengine.worker.wake_ups import queue_of

PORTS: Final = {"rabbitmq": 5672, "redis": 6379}


@dataclass(frozen=True, slots=True)
class Lane:
    """The queue of one job type of one test, on a broker that many share; *database* is of Redis."""

    kind: str
    prefix: str
    job_type: str
    database: int

    def url(self, port: int | None = None) -> str:
        """Return the address of the broker, or of a wire to it."""
        port = port or PORTS[self.kind]
        if self.kind == "redis":
            return f"redis://127.0.0.1:{port}/{self.database}"
        return f"amqp://guest:guest@127.0.0.1:{port}//"

    @contextmanager
    def _queue(self) -> Iterator[tuple[Any, Any]]:
        with Connection(self.url()) as connection:
            queue = queue_of(self.prefix, self.job_type)(connection.default_channel)
            queue.declare()
            yield connection, queue

    def depth(self) -> int:
        """Return how many messages wait."""
        with self._queue() as (connection, queue):
            how = {"durable": True, "auto_delete": False, "arguments": queue.queue_arguments}
            return connection.default_channel.queue_declare(queue.name, **how).message_count

    def lose(self) -> int:
        """Throw away what waits, and return how many messages that were."""
        return len(self.take())

    def take(self) -> list[Any]:
        """Take every message that waits off the queue."""
        found: list[Any] = []
        with self._queue() as (_, queue):
            while (message := queue.get(no_ack=True)) is not None:
                found.append(message)
        return found

    def put(self, messages: list[Any]) -> None:
        """Send copies of messages as somebody once sent them."""
        with self._queue() as (connection, queue):
            producer = Producer(connection.default_channel)
            for message in messages:
                producer.publish(
                    message.body,
                    exchange=self.prefix,
                    routing_key=queue.name,
                    headers=message.headers,
                    content_type=message.content_type,
                    content_encoding=message.content_encoding,
                    correlation_id=message.properties["correlation_id"],
                    reply_to=message.properties["reply_to"],
                )

    def clean_up(self) -> None:
        """Leave nothing of this test behind."""
        with self._queue() as (connection, queue):
            queue.delete()
            with suppress(Exception):
                queue.exchange(connection.default_channel).delete()
            if self.kind == "redis":
                connection.default_channel.client.flushdb()
