"""``jobengine worker``: runs batches without a database, over the API."""

import asyncio
import signal
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number

from jobengine.cli.call import TheCall
from jobengine.cli.exits import CommandFailed, Exit
from jobengine.logs import configure_logs, send_logs_to_structlog
from jobengine.settings import SettingsError

if TYPE_CHECKING:
    from jobengine.worker.errand import Errand

app = App(name="worker", default_parameter=Parameter(negative=()))


@app.default
def worker(*, slots: Annotated[int, Parameter(validator=Number(gte=1, lte=64))] = 4, call: TheCall) -> int:
    """Run batches of job types with the executor worker or celery, until SIGTERM or SIGINT.

    Needs no database: a client of role Orch.Worker (JOBENGINE_CLIENT_ID, JOBENGINE_CLIENT_SECRET, JOBENGINE_TENANT) and
    the job types of JOBENGINE_CONFIG. With JOBENGINE_BROKER_URL it waits to be woken, else it asks for work.

    Args:
        slots: how many batches to run at once.
        call: the global options.
    """
    from jobengine.worker.errand import read_errand

    try:
        errand = read_errand({**call.environ, "JOBENGINE_URL": call.url})
    except SettingsError as error:
        raise CommandFailed(str(error), Exit.USAGE, hint="see docs/operations.md for the settings") from None
    configure_logs(errand.log_level)
    send_logs_to_structlog()
    if errand.broker_url and errand.woken:
        return _woken(errand, slots)
    return asyncio.run(_asking(errand, slots))


def _woken(errand: "Errand", slots: int) -> int:
    try:
        from jobengine.worker.celery_app import run_worker
    except ImportError:
        raise CommandFailed("Celery is not installed", Exit.ERROR, hint="pip install 'jobengine[celery]'") from None
    return run_worker(errand, slots)


async def _asking(errand: "Errand", slots: int) -> int:
    from jobengine.worker.remote import RemoteWorker

    made = RemoteWorker(errand)
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    asking = asyncio.create_task(made.poll(slots))
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({asking, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await made.leave()
    await asking
    return Exit.OK
