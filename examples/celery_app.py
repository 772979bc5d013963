"""An application of your own that runs batches too: celery --app celery_app worker --concurrency 4."""

import os

from celery import Celery

from jobengine.worker.celery_app import join

app = Celery("reports", broker=os.environ["JOBENGINE_BROKER_URL"])


@app.task
def yours() -> str:
    """Work of your own goes on as before."""
    return "as before"


join(app)
