"""How wake-ups travel over Celery: one task, a queue for each job type, and the settings of both ends."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import celery  # pyright: ignore[reportMissingTypeStubs] - it has none
from kombu.entity import Exchange, Queue

# Untyped as it is.
CELERY: Final[Any] = celery
TASK: Final = "jobengine.wake"
SOCKET_SECONDS: Final = 5
# A wake-up that a dead worker held is handed out again after this time. Long batches may well run for longer: nobody
# is hurt when a second worker is woken for one of them.
REDIS_VISIBILITY_SECONDS: Final = 60


def queue_of(prefix: str, job_type: str) -> Any:
    """Return the queue of a job type: replicated where the broker knows how to (RabbitMQ's quorum queues)."""
    name = f"{prefix}.{job_type}"
    return Queue(
        name,
        exchange=Exchange(prefix, type="direct"),
        routing_key=name,
        durable=True,
        queue_arguments={"x-queue-type": "quorum"},
    )


def make_app(url: str, prefix: str, job_types: Iterable[str] = ()) -> Any:
    """Return a Celery application of our own on the broker at *url*; its workers listen for *job_types*."""
    app = CELERY.Celery("jobengine", set_as_current=False)
    # All three, or a CELERY_BROKER_URL of the environment, meant for somebody else's application, would come first.
    app.conf.update(broker_url=url, broker_read_url=url, broker_write_url=url)
    app.conf.update(_settings(url, prefix, job_types))
    return app


def _settings(url: str, prefix: str, job_types: Iterable[str]) -> Mapping[str, Any]:
    return {
        "task_queues": [queue_of(prefix, name) for name in job_types],
        "worker_prefetch_multiplier": 1,
        "worker_detect_quorum_queues": True,
        # A batch goes on while its worker looks for the broker again: its lease is not the broker's affair.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_hijack_root_logger": False,
        # Our logs go to standard error: what is written there must not come back as a log.
        "worker_redirect_stdouts": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "accept_content": ["json"],
        "task_serializer": "json",
        "task_ignore_result": True,
        "broker_connection_timeout": SOCKET_SECONDS,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": _transport(url),
    }


def _transport(url: str) -> Mapping[str, Any]:
    if url.startswith("amqp"):
        return {"confirm_publish": True, "read_timeout": SOCKET_SECONDS, "write_timeout": SOCKET_SECONDS}
    return {
        "visibility_timeout": REDIS_VISIBILITY_SECONDS,
        "socket_timeout": SOCKET_SECONDS,
        "socket_connect_timeout": SOCKET_SECONDS,
    }
