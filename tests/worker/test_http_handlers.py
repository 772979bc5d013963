"""``http:`` handlers behind a real server."""

import pytest
from tests.worker.conftest import Shop


async def test_a_handler_is_called_with_the_claim_and_a_token(shop: Shop) -> None:
    """The body is what a claim answers, and the bearer token is good for this batch's calls."""
    tokens: list[str] = []

    def answer(_batch: object, token: str) -> tuple[int, bytes]:
        tokens.append(token)
        return 204, b""

    shop.web.answer = answer
    made = await shop.start("web", "work")

    assert (await shop.ended(made))["status"] == "completed"
    asked = shop.web.asked[-1]
    assert asked.keys() == {
        "batch_id", "backfill_id", "job_type", "source", "window", "params", "attempt", "fencing_token",
        "lease_expires_at", "checkpoint",
    }  # fmt: skip
    assert asked["backfill_id"] == made["backfill_id"]
    answer_late = await shop.crew.api.client.post(
        f"/api/v1/batches/{asked['batch_id']}/complete",
        json={"fencing_token": asked["fencing_token"]},
        headers={"Authorization": f"Bearer {tokens[-1]}"},
    )
    assert answer_late.status_code == 204


@pytest.mark.parametrize(
    ("status", "ends", "waits"),
    [
        (200, "succeeded", False),
        (202, "succeeded", False),
        (302, "failed", False),
        (400, "failed", False),
        (500, "failed", False),
        (429, "pending", True),
        (503, "pending", True),
    ],
)
async def test_a_status_is_the_outcome(shop: Shop, status: int, ends: str, waits: bool) -> None:
    """2xx completes, 429 and 503 are tried again after a while, anything else fails; the body says nothing."""
    shop.web.answer = lambda _batch, _token: (status, b"x" * 100_000)
    made = await shop.start("web", "work")

    async def over() -> bool:
        batch = await shop.batch(made)
        return batch["status"] != "running" and batch["attempts"] == 1

    await shop.until(over)
    batch = await shop.batch(made)
    assert (batch["status"], batch["why_waiting"]) == (ends, "backoff" if waits else None)
    assert batch["error"] == (None if ends == "succeeded" else f"the handler answered {status}")


async def test_a_handler_that_cannot_be_reached_is_tried_again(shop: Shop) -> None:
    """It may be back."""
    made = await shop.start("nowhere", "work")

    async def waits() -> str | None:
        batch = await shop.batch(made)
        return batch["error"] if batch["why_waiting"] == "backoff" else None

    assert await shop.until(waits) == "the handler cannot be reached: ConnectError"


async def test_a_cancel_hangs_up(shop: Shop) -> None:
    """A handler that never answers is left alone with its batch."""
    shop.web.hung_up.clear()
    shop.web.answer = lambda _batch, _token: (0, b"")
    made = await shop.start("web", "work")

    async def runs() -> bool:
        return bool(shop.web.asked) and shop.web.asked[-1]["backfill_id"] == made["backfill_id"]

    await shop.until(runs)
    await shop.crew.moved(made, "cancel")

    assert (await shop.ended(made))["status"] == "canceled"
    await shop.web.hung_up.wait()
