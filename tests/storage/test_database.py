"""Transactions: bound to one tenant, committed whole or not at all, and told apart when they fail."""

import asyncio

import psycopg
import pytest
from tests.factories import Api, Connection, new_tenant

from jobengine.bootstrap import Plane
from jobengine.errors import NotFound, Unavailable
from jobengine.storage.queries import QUERIES


async def test_an_error_rolls_everything_back(plane: Plane, api: Api) -> None:
    """The pool gives the next transaction a clean connection."""

    async def fail() -> None:
        async with plane.database.transaction(api.tenant_id) as tx:
            await tx.run("admission_start")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with plane.database.transaction(api.tenant_id) as tx:
        assert await tx.all("account_names") == []


async def test_a_caller_can_not_name_another_tenant(plane: Plane, api: Api) -> None:
    """Whatever stands among a query's values, the tenant is the transaction's."""
    other = await new_tenant(plane)
    async with plane.database.transaction(other) as tx:
        await tx.run("admission_start")

    async with plane.database.transaction(api.tenant_id) as tx:
        assert await tx.all("account_names", tenant_id=other) == []
        await tx.run("admission_start", tenant_id=other)
        assert await tx.all("account_names") == [{"account": ""}]


async def test_the_binding_ends_with_its_transaction(plane: Plane) -> None:
    """A connection that goes back to the pool belongs to nobody."""
    tenants = [await new_tenant(plane) for _ in range(3)]
    for tenant_id in tenants * 5:
        async with plane.database.transaction(tenant_id) as tx:
            await tx.run("admission_start")
            assert [row["account"] for row in await tx.all("account_names")] == [""]


@pytest.mark.parametrize(
    "tenant_id", ["o'neill", "x', true); select 1; --", r"back\' slash", "100 %(tenant_id)s %s", "Ö"]
)
async def test_a_transaction_is_bound_to_the_very_text(
    plane: Plane, monkeypatch: pytest.MonkeyPatch, tenant_id: str
) -> None:
    """However it begins, nothing in a tenant's id is taken for SQL."""
    monkeypatch.setitem(QUERIES, "bound_to", b"select current_setting('jobengine.tenant') as tenant")
    asked = ("bound_to", {})
    async with plane.database.transaction(tenant_id) as alone, plane.database.transaction(tenant_id, asked) as asking:
        assert await alone.all("bound_to") == [{"tenant": tenant_id}]
        assert asking.opened([asked]) == [[{"tenant": tenant_id}]]


async def test_a_query_that_finds_nothing_is_none_or_an_error(plane: Plane, api: Api) -> None:
    """`find` may find nothing; `one` must find something."""
    async with plane.database.transaction(api.tenant_id) as tx:
        assert await tx.find("admission_lock") is None
        with pytest.raises(NotFound):
            await tx.one("admission_lock")


async def test_queries_asked_together_run_one_after_the_other(plane: Plane, api: Api) -> None:
    """In one round trip, each seeing what those before it did."""
    async with plane.database.transaction(api.tenant_id) as tx:
        before, nothing, after = await tx.together(
            ("account_names", {}), ("admission_start", {}), ("account_names", {})
        )

    assert (before, nothing, after) == ([], [], [{"account": ""}])


async def test_an_error_among_queries_asked_together_undoes_them_all(plane: Plane, api: Api) -> None:
    """A pipeline is no half transaction."""
    with pytest.raises(psycopg.Error):
        async with plane.database.transaction(api.tenant_id) as tx:
            await tx.together(("admission_start", {}), ("lease_get", {"lease_id": "no uuid"}))

    async with plane.database.transaction(api.tenant_id) as tx:
        assert await tx.all("account_names") == []


async def test_a_deadlock_is_a_lost_race(plane: Plane, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two transactions that wait for each other: one goes on, the other may try again."""
    add = b"insert into admission_accounts (tenant_id, account) values (%(tenant_id)s, %(account)s)"
    take = b"select 1 from admission_accounts where tenant_id = %(tenant_id)s and account = %(account)s for update"
    for name, text in (("add_account", add), ("take_account", take)):
        monkeypatch.setitem(QUERIES, name, text)
    async with plane.database.transaction(api.tenant_id) as tx:
        for account in ("a", "b"):
            await tx.run("add_account", account=account)
    both = asyncio.Barrier(2)

    async def cross(first: str, second: str) -> None:
        async with plane.database.transaction(api.tenant_id) as tx:
            await tx.find("take_account", account=first)
            await both.wait()
            await tx.find("take_account", account=second)

    ends = await asyncio.gather(cross("a", "b"), cross("b", "a"), return_exceptions=True)

    assert sorted(type(end).__name__ for end in ends) == ["LostRace", "NoneType"]


async def test_a_connection_that_breaks_is_unavailable_and_the_next_one_works(
    plane: Plane, api: Api, owner: Connection
) -> None:
    """Whatever ends the server's side, the caller may try again later, and then it works."""

    async def lose_the_connection() -> None:
        async with plane.database.transaction(api.tenant_id) as tx:
            await owner.execute("select pg_terminate_backend(%s, 5000)", (tx._connection.info.backend_pid,))
            await tx.all("account_names")

    with pytest.raises(Unavailable):
        await lose_the_connection()
    async with plane.database.transaction(api.tenant_id) as tx:
        assert await tx.all("account_names") == []
