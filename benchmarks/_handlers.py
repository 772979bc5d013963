"""What the backfills of the benchmarks run."""

from time import sleep

from jobengine.worker.child import Batch


def nothing(batch: Batch) -> None:
    """Be done at once: all that is left is what a batch costs us."""
    batch.counts["processed"] = 0


def nap(batch: Batch) -> None:
    """Hold a slot, and no processor, for as long as a small batch does."""
    sleep(0.5)
    batch.counts["processed"] = 0
