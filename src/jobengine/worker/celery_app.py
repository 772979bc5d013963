"""Batches on Celery: join an application of your own to it, or let ``jobengine worker`` make one.

A task carries ids, and is nothing but word that there may be work; everything true stands in the ledger.
"""

import asyncio
import os
from collections.abc import Coroutine
from functools import cache
from importlib import import_module
from threading import Thread
from typing import Any, Final

from jobengine.worker.errand import Errand, read_errand
from jobengine.worker.remote import RemoteWorker
from jobengine.worker.wake_ups import CELERY, TASK, make_app, queue_of

__all__ = ["join", "run_worker", "wake"]

LOOK_UP_SECONDS: Final = 0.5


@CELERY.shared_task(name=TASK, acks_late=True, reject_on_worker_lost=True, ignore_result=True, max_retries=0)
def wake(tenant_id: str, job_type: str, **ids: str) -> None:  # noqa: ARG001 - a hint for whoever looks at the broker
    """Run what there is to run."""
    here = _here()
    here.run(here.worker.wake(tenant_id, job_type))


def join(app: Any) -> Any:
    """Let the workers of *app* run batches: they listen for wake-ups too, and take one message at a time.

    To be called when *app* is configured; its broker must be the server's. Raises SettingsError where the environment
    does not tell what to run.
    """
    errand = read_errand(os.environ)
    app.conf.worker_prefetch_multiplier = 1
    # Named queues replace the one that Celery listens to by itself: the application's own tasks go on.
    theirs = list(app.amqp.queues.values())
    app.conf.task_queues = [*theirs, *(queue_of(errand.broker_queue, name) for name in errand.woken)]
    # What was read just now is kept, and would be used instead.
    del app.amqp.queues
    return app


def run_worker(errand: Errand, slots: int) -> int:
    """Be a Celery worker until a signal ends it; return its exit code."""
    app = make_app(errand.broker_url or "", errand.broker_queue, errand.woken)
    CELERY.signals.worker_ready.connect(_look_up, weak=False)
    # Threads: handlers have processes of their own, and one event loop speaks for all of them.
    worker = app.Worker(
        pool="threads",
        concurrency=slots,
        quiet=True,
        loglevel="WARNING",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        consumer_cls=_plain_consumer(),
    )
    worker.start()
    return int(worker.exitcode or 0)


def _look_up(sender: Any, **_: object) -> None:
    # Else Celery's loop sleeps for up to ten seconds before it sees that a signal told it to end.
    if sender.hub is not None:
        sender.hub.call_repeatedly(LOOK_UP_SECONDS, lambda: None)


def _plain_consumer() -> Any:
    """Return Celery's consumer without its queues for delayed tasks, 28 on each broker: no wake-up is ever delayed."""
    base: Any = import_module("celery.worker.consumer").Consumer
    steps = [step for step in base.Blueprint.default_steps if "delayed_delivery" not in step]
    return type("Consumer", (base,), {"Blueprint": type("Blueprint", (base.Blueprint,), {"default_steps": steps})})


class _Here:
    """The worker of this process, in an event loop of its own: one for all the threads that Celery runs tasks in."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        # The kernel ends handlers with the thread that started them: it must live as long as the process.
        Thread(target=self._loop.run_forever, name="jobengine", daemon=True).start()
        self.worker: RemoteWorker = self.run(_made(read_errand(os.environ)))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def leave(self) -> None:
        asyncio.run_coroutine_threadsafe(self.worker.leave(), self._loop)


async def _made(errand: Errand) -> RemoteWorker:
    return RemoteWorker(errand)


@cache
def _of_process(pid: int) -> _Here:  # noqa: ARG001 - what a fork copied is of no use in the child
    return _Here()


def _here() -> _Here:
    return _of_process(os.getpid())


@CELERY.signals.worker_shutting_down.connect
def _leave(**_: object) -> None:
    # Where tasks run in processes of their own, nothing is here: those come to their ends by themselves.
    if _of_process.cache_info().currsize:
        _here().leave()
