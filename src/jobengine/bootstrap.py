"""Settings → ready objects: the one place that knows every class."""

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import structlog
from psycopg.types.json import Jsonb

from jobengine import __version__
from jobengine.audit.checkpoint import Checkpoint, VerifierKey
from jobengine.audit.signing import LogKeys
from jobengine.authority.grants import GrantPolicy
from jobengine.authority.guard import Guard, Verified
from jobengine.authority.keys import CheckpointKey, SigningKey, log_keys, signing_key, verification_keys
from jobengine.authority.master_key import Label, MasterKey
from jobengine.authority.refusals import RefusalMeter, SecretThrottle
from jobengine.authority.tokens import BatchAttempt, Realm, mint_for_batch
from jobengine.backfill.suppressor import DuplicateSuppressor
from jobengine.clock import CarriedClock, utc_now
from jobengine.errors import JobengineError, Unauthenticated, Unavailable
from jobengine.ids import new_id
from jobengine.logs import configure_logs
from jobengine.metrics import CONNECTIONS, SEQUENCED, WAITING
from jobengine.quota.policy import FIRST_POLICY
from jobengine.settings import Settings, SettingsError
from jobengine.storage.admission_tidying import tidy_admissions
from jobengine.storage.anchors import Heart
from jobengine.storage.authority import (
    Revocations,
    add_tenant,
    load_checkpoint_keys,
    load_signing_keys,
    record_summaries,
    start_keys,
)
from jobengine.storage.batch_committer import BatchCommitter
from jobengine.storage.committer import AdmissionCommitter
from jobengine.storage.database import Database
from jobengine.storage.embedded import EmbeddedPostgres
from jobengine.storage.events import forget_events
from jobengine.storage.governance_work import GovernanceWork
from jobengine.storage.migrator import migrate
from jobengine.storage.sequencer import Sequencer
from jobengine.storage.simulator import Simulator
from jobengine.tenancy.model import PLATFORM, Principal
from jobengine.tracing import NO_TRACES, Traces, start_traces

SEQUENCE_EVERY = timedelta(milliseconds=200)
OWN_EVERY = timedelta(seconds=1)
SIGN_ANEW_EVERY = timedelta(seconds=2)
BEAT_EVERY = timedelta(seconds=2)  # a heartbeat is due once a minute; all processes ask whether it is
REFRESH_EVERY = timedelta(milliseconds=400)
COUNT_CONNECTIONS_EVERY = timedelta(seconds=1)
GOVERN_EVERY = timedelta(milliseconds=500)
TELL_REFUSALS_EVERY = timedelta(seconds=3)
PRUNE_EVERY = timedelta(minutes=1)
BATCH_TOKEN_LIFE = timedelta(hours=23)
MOST_VERIFIED = 4_096

_log = structlog.get_logger()


@dataclass(slots=True)
class Plane:
    """Everything a process of the service works with; made by `open_plane`."""

    settings: Settings
    database: Database
    master: MasterKey = field(repr=False)
    realm: Realm
    keys: tuple[SigningKey, ...] = field(repr=False)
    checkpoint_keys: tuple[CheckpointKey, ...] = field(repr=False)
    revocations: Revocations
    name: str
    traces: Traces = NO_TRACES
    clock: CarriedClock = field(default_factory=CarriedClock, init=False, repr=False)
    guard: Guard = field(init=False, repr=False)
    grant_policy: GrantPolicy = field(init=False)
    suppressor: DuplicateSuppressor = field(init=False)
    pepper: bytes = field(init=False, repr=False)
    page_key: bytes = field(init=False, repr=False)
    plan_key: bytes = field(init=False, repr=False)
    refusals: RefusalMeter = field(default_factory=RefusalMeter, init=False, repr=False)
    throttle: SecretThrottle = field(default_factory=SecretThrottle, init=False, repr=False)
    committer: AdmissionCommitter = field(init=False, repr=False)
    simulator: Simulator = field(init=False, repr=False)
    batches: BatchCommitter = field(init=False, repr=False)
    _verified: dict[str, Verified] = field(default_factory=dict[str, Verified], init=False, repr=False)

    def __post_init__(self) -> None:
        """Derive what hangs on the parts."""
        self.grant_policy = GrantPolicy(backfill_ticket_required=self.settings.backfill_ticket_required)
        self.suppressor = DuplicateSuppressor(self.settings.backfill_suppression_window)
        self.pepper = self.master.derive(Label.PEPPER)
        self.page_key = self.master.derive(Label.PAGE_TOKEN)
        self.plan_key = self.master.derive(Label.PLAN_TOKEN)
        self.committer = AdmissionCommitter(self.database)
        self.batches = BatchCommitter(self.database)
        self._use(self.keys)

    def verify(self, token: str) -> Principal:
        """Return the holder of an access token; raises Unauthenticated, for a revoked one too."""
        return self.read_token(token).principal

    def read_token(self, token: str) -> Verified:
        """Return what an access token says; raises Unauthenticated, for a revoked one too."""
        now = self.clock.now()
        verified = self._verified.get(token)
        if verified is None or verified.principal.expires_at <= now:
            verified = self.guard.read(token, now)
            if len(self._verified) >= MOST_VERIFIED:
                self._verified.clear()
            # A scheduler shows the same token a thousand times a second; its signature does not change.
            self._verified[token] = verified
        if self.revocations.refuse(verified.principal.token_id, verified.principal.client_id):
            raise Unauthenticated("the access token was revoked", code="invalid_token")
        return verified

    def token_for_batch(self, attempt: BatchAttempt) -> str:
        """Return a token that speaks for *attempt* alone; it is worth nothing once the lease is lost."""
        now = self.clock.now()
        key = signing_key(self.keys, now)
        return mint_for_batch(attempt, self.realm, key, now, token_id=new_id(), life=BATCH_TOKEN_LIFE).text

    def sign_checkpoint(self, checkpoint: Checkpoint) -> str:
        """Return the signed note of *checkpoint*."""
        return self.log_keys().sign(checkpoint)

    def log_keys(self) -> LogKeys:
        """Return the keys of the logs' checkpoints as they are now."""
        return log_keys(self.checkpoint_keys, utc_now())

    def verifier_key(self, origin: str) -> VerifierKey:
        """Return the key that verifies the checkpoints of the log called *origin*."""
        return self.log_keys().verifier_key(origin)

    async def refresh(self) -> None:
        """Read again what other processes may have changed, and the time: keys and revocations."""
        await self.revocations.refresh(self.database)
        async with self.database.system() as tx:
            self.clock.tell(tx.now)
            keys = await load_signing_keys(tx, self.master.derive(Label.KEK))
            self.checkpoint_keys = await load_checkpoint_keys(tx, self.master.derive(Label.KEK))
        # Even the same keys: time alone retires one.
        self._use(keys)

    async def tell_refusals(self) -> None:
        """Write the summaries of refusals whose minute is over."""
        await record_summaries(self.database, self.refusals, self.refusals.due(utc_now()))

    async def tell_all_refusals(self) -> None:
        """Write every open summary: the process is about to end."""
        await record_summaries(self.database, self.refusals, self.refusals.drain())

    async def count_connections(self) -> None:
        """Show how busy the connections of this process are."""
        for use in self.database.pools():
            CONNECTIONS.labels(use.name, "used").set(use.used)
            CONNECTIONS.labels(use.name, "idle").set(use.idle)
            WAITING.labels(use.name).set(use.waiting)

    async def prune(self) -> None:
        """Forget what nobody may ask for any more."""
        await tidy_admissions(self.database)
        for query in (
            "system_prune_idempotency_keys",
            "system_prune_denials",
            "system_prune_revoked_tokens",
        ):
            async with self.database.system() as tx:
                await tx.run(query)
        async with self.database.system() as tx:
            await tx.run("system_forget_asks", days=self.settings.ask_retention_days)
        await forget_events(self.database, self.settings.event_retention)

    def _use(self, keys: tuple[SigningKey, ...]) -> None:
        self.keys = keys
        verifying = verification_keys(keys, utc_now())
        if not self._verified or verifying.keys() != self.guard.keys.keys():
            self._verified.clear()
            self.guard = Guard(self.realm, verifying)


@asynccontextmanager
async def open_plane(settings: Settings, *, serving: bool = False) -> AsyncGenerator[Plane]:
    """Start or join the database, migrate it, check that it is ours, and yield the ready objects.

    Raises SettingsError when the master key or the issuer is not this database's.
    """
    # A command's standard error is for its user: what serving tells about each request is not.
    configure_logs(settings.log_level if serving else "warning")
    if serving and not settings.is_loopback and settings.issuer is None:
        raise SettingsError("JOBENGINE_ISSUER is required when JOBENGINE_HOST is not a loopback address")
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    async with AsyncExitStack() as stack:
        traces = start_traces(os.environ, __version__) if serving else NO_TRACES
        stack.push_async_callback(asyncio.to_thread, traces.close)
        login = settings.database_url or await _embedded(stack, settings)
        await asyncio.to_thread(migrate, settings.migration_url or login, login)
        database = Database(login)
        await database.open()
        stack.push_async_callback(database.close)
        plane = await _assemble(settings, database, serving=serving)
        plane.traces = traces
        plane.simulator = Simulator(login)
        # Before the pools close: what was accepted is finished.
        stack.push_async_callback(plane.committer.close)
        stack.push_async_callback(plane.batches.close)
        yield plane


async def _embedded(stack: AsyncExitStack, settings: Settings) -> str:
    server = EmbeddedPostgres(settings.data_dir)
    conninfo = await server.start()
    stack.push_async_callback(server.stop)
    return conninfo


async def _assemble(settings: Settings, database: Database, *, serving: bool) -> Plane:
    master = read_master_key(settings.master_key_path)
    issuer = await _installation(settings, database, master, serving=serving)
    keys, checkpoint_keys = await start_keys(database, master.derive(Label.KEK))
    revocations = Revocations()
    await revocations.refresh(database)
    plane = Plane(
        settings=settings,
        database=database,
        master=master,
        realm=Realm(issuer, settings.audience),
        keys=keys,
        checkpoint_keys=checkpoint_keys,
        revocations=revocations,
        name=f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}",
    )
    async with database.system() as tx:
        plane.clock.tell(tx.now)
    return plane


def read_master_key(path: Path) -> MasterKey:
    """Read the master key, making the file at the first start (mode 0600); raises SettingsError for a bad one."""
    with suppress(FileExistsError):
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(MasterKey.generate().to_file())
                file.flush()
                os.fsync(file.fileno())
            try:
                # A link never replaces a file that another process made meanwhile.
                path.hardlink_to(fresh)
            finally:
                fresh.unlink()
    try:
        return MasterKey.from_file(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SettingsError(f"JOBENGINE_MASTER_KEY_FILE {path}: {error}") from None


async def _installation(settings: Settings, database: Database, master: MasterKey, *, serving: bool) -> str:
    asked = settings.issuer or f"http://{settings.host}:{settings.port}"
    async with database.system() as tx:
        await tx.run("system_start_installation", issuer=None, master_check=master.derive(Label.CHECK))
        await tx.run("system_start_policy", document=Jsonb(FIRST_POLICY.as_json()))
        await add_tenant(tx, PLATFORM)
        if not master.is_the_one((await tx.one("system_find_installation"))["master_check"]):
            raise SettingsError(f"{settings.master_key_path} is not the master key of this database")
        if serving:
            await tx.run("system_fix_issuer", issuer=asked)
        stored = (await tx.one("system_find_installation"))["issuer"]
    if settings.issuer is not None and stored not in (None, settings.issuer):
        raise SettingsError(f"JOBENGINE_ISSUER is fixed at the first start; this database's is {stored}")
    return stored or asked


@asynccontextmanager
async def background(
    plane: Plane, *more: tuple[str, timedelta, Callable[[], Awaitable[object]]]
) -> AsyncGenerator[None]:
    """Run the standing work of a serving process beside it: sequencing, refreshing, forgetting, and *more*."""
    keeper = _LogKeeper(plane)
    heart = Heart(plane.database, plane.name, plane.log_keys)
    await keeper.own()
    await heart.start()
    work = [
        ("sequencer.own", OWN_EVERY, keeper.own),
        ("sequencer.drain", SEQUENCE_EVERY, keeper.drain),
        ("sequencer.sign_anew", SIGN_ANEW_EVERY, keeper.sign_anew),
        ("heartbeat", BEAT_EVERY, heart.beat),
        ("refresh", REFRESH_EVERY, plane.refresh),
        ("governance", GOVERN_EVERY, GovernanceWork(plane.database, plane.name).step),
        ("refusals", TELL_REFUSALS_EVERY, plane.tell_refusals),
        ("connections", COUNT_CONNECTIONS_EVERY, plane.count_connections),
        ("prune", PRUNE_EVERY, plane.prune),
        *more,
    ]
    tasks = [asyncio.create_task(_forever(*item), name=item[0]) for item in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A database that does not answer the first would let each of the others wait ten seconds too.
        with suppress(Unavailable):
            for last in (plane.tell_all_refusals, keeper.drain, heart.stop, keeper.drain, keeper.leave):
                await _unless_refused(last)


async def _unless_refused(step: Callable[[], Awaitable[object]]) -> None:
    try:
        await step()
    except Unavailable:
        raise
    except JobengineError as error:
        _log.warning("background.failed", work="ending", error=str(error))


class _LogKeeper:
    """A process's part in sequencing: the shards it owns, and what is to be done with them."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self._sequencer = Sequencer(plane.database, plane.name, plane.log_keys)
        self._shards: list[int] = []
        self.leave = self._sequencer.leave

    async def own(self) -> None:
        self._shards = await self._sequencer.own()

    async def drain(self) -> None:
        started = utc_now()
        if self._shards and (placed := await self._sequencer.drain(self._shards)):
            SEQUENCED.inc(placed)
            self._plane.traces.tell("sequencer.drain", started, utc_now(), {"jobengine.entries": placed})

    async def sign_anew(self) -> None:
        await self._sequencer.sign_anew(self._shards)


async def _forever(name: str, every: timedelta, step: Callable[[], Awaitable[object]]) -> None:
    me = asyncio.current_task()
    while True:
        try:
            await step()
        except JobengineError as error:
            _log.warning("background.failed", work=name, error=str(error))
        except Exception:  # noqa: BLE001 - one step's surprise must not end the standing work; it is loud in the log
            _log.exception("background.failed", work=name)
        # Python 3.11 may swallow a cancellation that meets a wait just finished (in asyncio.wait_for, under the driver
        # of the database). It counts it all the same: without a look at the count, the process would never end.
        if me is not None and me.cancelling():
            return
        await asyncio.sleep(every.total_seconds())
