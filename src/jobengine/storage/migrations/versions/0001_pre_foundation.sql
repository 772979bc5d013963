-- The foundation: who may act, what is limited, what runs, and the log of it all.
-- Every key of tenant data begins with tenant_id; '_platform' is the key of what belongs to no tenant.

create table installation (
    singleton       boolean primary key default true check (singleton),
    issuer          text,
    master_check    bytea not null,
    created_at      timestamptz not null default clock_timestamp()
);

create table tenants (
    tenant_id       text primary key check (tenant_id ~ '^([a-z0-9][a-z0-9-]{0,62}|_platform)$'),
    created_at      timestamptz not null default clock_timestamp()
);

create table clients (
    client_id       text primary key,
    name            text not null,
    owner           text not null,
    secret_hash     bytea not null,
    tenants         text[] not null,
    roles           text[] not null,
    created_at      timestamptz not null default clock_timestamp(),
    disabled_at     timestamptz
);

create table signing_keys (
    kid             text primary key,
    purpose         text not null check (purpose in ('token', 'checkpoint')),
    public_key      jsonb not null,
    sealed_private  bytea not null,
    created_at      timestamptz not null,
    active_from     timestamptz not null,
    retire_at       timestamptz
);

create table policy (
    singleton       boolean primary key default true check (singleton),
    version         bigint not null default 1,
    document        jsonb not null,
    updated_at      timestamptz not null default clock_timestamp()
);

create table revoked_tokens (
    tenant_id       text not null references tenants,
    jti             text not null,
    client_id       text not null,
    revoked_at      timestamptz not null default clock_timestamp(),
    expires_at      timestamptz not null,
    primary key (tenant_id, jti)
);
create index revoked_tokens_expiry on revoked_tokens (expires_at);

-- Audit ---------------------------------------------------------------------------------------

-- The head of each log. The frontier is the compact range of the tree (RFC 9162): one hash for each 1 bit of size.
create table audit_logs (
    tenant_id       text primary key references tenants,
    origin          text not null unique,
    shard           smallint not null check (shard between 0 and 63),
    size            bigint not null default 0,
    frontier        bytea[] not null default '{}',
    root_hash       bytea not null,
    checkpoint      text not null default '',
    advanced_at     timestamptz not null default clock_timestamp()
);

-- Leaves as hashed; the columns beside them only serve look-ups and repeat what the leaf says.
create table audit_entries (
    tenant_id       text not null references tenants,
    entry_id        uuid not null,
    occurred_at     timestamptz not null,
    action          text not null,
    outcome         text not null,
    actor_id        text not null,
    resource_type   text,
    resource_id     text,
    token_id        text,
    leaf            bytea not null,
    leaf_hash       bytea not null,
    primary key (tenant_id, entry_id)
);
create index audit_entries_token on audit_entries (tenant_id, token_id) where token_id is not null;
create index audit_entries_resource on audit_entries (tenant_id, resource_type, resource_id);

-- The one place where a reason or a ticket is kept as text; the leaf holds only its salted hash.
create table audit_texts (
    tenant_id       text not null,
    entry_id        uuid not null,
    field           text not null,
    salt            bytea not null,
    text            text not null,
    primary key (tenant_id, entry_id, field),
    foreign key (tenant_id, entry_id) references audit_entries
);

-- Entries that wait for their place in the tree.
create table audit_intake (
    tenant_id       text not null,
    intake_id       bigint generated always as identity,
    shard           smallint not null,
    entry_id        uuid not null,
    leaf_hash       bytea not null,
    primary key (tenant_id, intake_id)
);

create table audit_tree (
    tenant_id       text not null references tenants,
    sequence        bigint not null,
    entry_id        uuid not null,
    leaf_hash       bytea not null,
    primary key (tenant_id, sequence),
    unique (tenant_id, entry_id)
);

-- Roots of the complete subtrees above the leaves: they never change once written, and make every proof O(log n).
create table audit_nodes (
    tenant_id       text not null references tenants,
    level           smallint not null check (level >= 1),
    index           bigint not null,
    hash            bytea not null,
    primary key (tenant_id, level, index)
);

create table audit_shards (
    shard           smallint primary key check (shard between 0 and 63),
    owner           text,
    lease_until     timestamptz not null default '-infinity'
);
insert into audit_shards (shard) select generate_series(0, 63);

-- Quotas --------------------------------------------------------------------------------------

create table quotas (
    tenant_id           text not null references tenants,
    quota_id            uuid not null,
    job_type            text,                       -- null: the whole tenant
    max_active          bigint not null check (max_active >= 0),
    max_per_hour        bigint not null check (max_per_hour >= 0),
    burst               bigint not null check (burst >= 0),
    refill_per_second   numeric(16, 6) not null check (refill_per_second >= 0),
    paused              boolean not null default false,
    pause_reason        text,
    version             bigint not null default 1,
    created_at          timestamptz not null,
    updated_at          timestamptz not null,
    updated_by          text not null,
    last_action         text not null,
    last_entry_id       uuid not null,
    deleted_at          timestamptz,
    primary key (tenant_id, quota_id),
    foreign key (tenant_id, last_entry_id) references audit_entries
);
create unique index quotas_one_per_job_type on quotas (tenant_id, job_type) nulls not distinct where deleted_at is null;
create index quotas_deleted on quotas (tenant_id, job_type, deleted_at) where deleted_at is not null;

create table quota_history (
    tenant_id       text not null,
    quota_id        uuid not null,
    version         bigint not null,
    at              timestamptz not null,
    action          text not null,
    before          jsonb,
    after           jsonb,
    changed_by      text not null,
    entry_id        uuid not null,
    primary key (tenant_id, quota_id, version),
    foreign key (tenant_id, quota_id) references quotas,
    foreign key (tenant_id, entry_id) references audit_entries
);

create table quota_overrides (
    tenant_id       text not null,
    override_id     uuid not null,
    quota_id        uuid not null,
    limits          jsonb not null,
    starts_at       timestamptz not null,
    until           timestamptz not null check (until > starts_at),
    created_at      timestamptz not null,
    created_by      text not null,
    entry_id        uuid not null,
    removed_at      timestamptz,
    primary key (tenant_id, override_id),
    foreign key (tenant_id, quota_id) references quotas,
    foreign key (tenant_id, entry_id) references audit_entries
);
create index quota_overrides_of_quota on quota_overrides (tenant_id, quota_id, until);

-- Admission -----------------------------------------------------------------------------------

-- What one job type ('' = the whole tenant) holds and has left. The '' row is the tenant's lock: every transaction
-- that adds or removes a lease holds it, so the sums beside it cannot part from the leases.
create table admission_accounts (
    tenant_id       text not null references tenants,
    account         text not null,
    fencing         bigint not null default 0,
    active          bigint not null default 0,
    active_backfill bigint not null default 0,
    granted_hour    bigint not null default 0,
    bucket_pico     numeric(40, 0),             -- tokens left at bucket_at, in 10^-12; null: full
    bucket_at       timestamptz,
    decided_at      timestamptz not null default 'epoch',
    primary key (tenant_id, account)
);

-- Admissions of the rolling hour, one row a transaction; granted_hour of the account is their sum.
create table admission_grants (
    tenant_id       text not null,
    account         text not null,
    at              timestamptz not null,
    granted         integer not null,
    primary key (tenant_id, account, at)
);

create table admission_denials (
    tenant_id       text not null,
    job_type        text not null,
    limit_name      text not null,
    minute          timestamptz not null,
    denied          bigint not null,
    primary key (tenant_id, job_type, limit_name, minute)
);

create table leases (
    tenant_id       text not null references tenants,
    lease_id        uuid not null,
    job_type        text not null,
    quota_id        uuid,
    kind            text not null check (kind in ('live', 'backfill')),
    slots           bigint not null check (slots >= 1),
    job_id          text,
    fencing_token   bigint not null,
    lease_seconds   integer not null,
    granted_at      timestamptz not null,
    expires_at      timestamptz not null,
    client_id       text not null,
    ended_at        timestamptz,
    ending          text check (ending in ('released', 'expired', 'forced_out')),
    primary key (tenant_id, lease_id),
    check ((ended_at is null) = (ending is null))
);
create index leases_live on leases (tenant_id, expires_at) where ended_at is null;
create index leases_job on leases (tenant_id, job_id) where ended_at is null and job_id is not null;
create index leases_ended on leases (ended_at) where ended_at is not null;

-- Backfills -----------------------------------------------------------------------------------

-- One row a suppression key: its lock makes "look for a duplicate, then insert" one step.
create table suppression_keys (
    tenant_id       text not null references tenants,
    job_type        text not null,
    source          text not null,
    params_digest   bytea not null,
    primary key (tenant_id, job_type, source, params_digest)
);

create table backfills (
    tenant_id           text not null references tenants,
    backfill_id         uuid not null,
    job_type            text not null,
    source              text not null,
    params_digest       bytea not null,
    params              text not null,          -- RFC 8785 form; the digest is of what was sent, never of this
    window_start        timestamptz not null,
    window_end          timestamptz not null check (window_end > window_start),
    partition           text not null,
    run_order           text not null check (run_order in ('forward', 'backward')),
    reprocess           text not null check (reprocess in ('missing', 'failed', 'all')),
    max_active          bigint,
    max_failures        bigint,
    max_failure_rate    double precision,
    handler_kind        text not null check (handler_kind in ('embedded', 'external')),
    handler_version     text not null,
    lease_seconds       integer not null,
    max_attempts        integer not null,
    status              text not null check (status in ('pending', 'running', 'paused', 'canceling', 'canceled', 'completed', 'failed')),
    stop_reason         text,
    total               bigint not null,
    untouched           bigint not null,        -- partitions that no batch row stands for yet
    succeeded           bigint not null default 0,
    failed              bigint not null default 0,
    skipped             bigint not null default 0,
    canceled            bigint not null default 0,
    events_processed    bigint not null default 0,
    events_duplicates   bigint not null default 0,
    events_failed       bigint not null default 0,
    requested_by        text not null,
    token_id            text not null,
    entry_id            uuid not null,
    trace_id            text not null,
    created_at          timestamptz not null,
    started_at          timestamptz,
    dispatched_at       timestamptz not null default 'epoch',
    blocked_by          text,                   -- what denied the last claim: quota or share
    cancel_requested_at timestamptz,
    finished_at         timestamptz,
    primary key (tenant_id, backfill_id),
    foreign key (tenant_id, entry_id) references audit_entries
);
create index backfills_of_key on backfills (tenant_id, job_type, source, params_digest, status);
create index backfills_active on backfills (tenant_id, status) where status in ('pending', 'running', 'paused', 'canceling');

-- Stretches of partitions that no batch row stands for: a million untouched partitions are one row.
create table backfill_ranges (
    tenant_id       text not null,
    backfill_id     uuid not null,
    first_index     bigint not null,
    last_index      bigint not null check (last_index >= first_index),
    status          text not null check (status in ('pending', 'skipped', 'canceled')),
    primary key (tenant_id, backfill_id, first_index),
    foreign key (tenant_id, backfill_id) references backfills
);

create table batches (
    tenant_id           text not null,
    batch_id            uuid not null,
    backfill_id         uuid not null,
    partition_index     bigint not null,
    job_type            text not null,
    window_start        timestamptz not null,
    window_end          timestamptz not null,
    status              text not null check (status in ('pending', 'running', 'succeeded', 'failed', 'canceled')),
    attempts            integer not null default 0,
    not_before          timestamptz not null default 'epoch',
    fencing_token       bigint,
    lease_id            uuid,
    lease_expires_at    timestamptz,
    checkpoint          jsonb,
    events_processed    bigint not null default 0,
    events_duplicates   bigint not null default 0,
    events_failed       bigint not null default 0,
    error               text,
    finished_at         timestamptz,
    primary key (tenant_id, batch_id),
    unique (tenant_id, backfill_id, partition_index),
    foreign key (tenant_id, backfill_id) references backfills
);
create index batches_waiting on batches (tenant_id, job_type, not_before) where status = 'pending';
create index batches_open on batches (tenant_id, backfill_id, status) where status in ('pending', 'running');
create index batches_running on batches (tenant_id, lease_expires_at) where status = 'running';

-- One row a claim of a batch. What an attempt claimed becomes final up to final_call, or as a whole when it completes:
-- settling ten thousand keys is one row's change.
create table batch_attempts (
    tenant_id       text not null,
    attempt_id      bigint generated always as identity,
    batch_id        uuid not null,
    backfill_id     uuid not null,
    fencing_token   bigint not null,
    client_id       text not null,
    state           text not null check (state in ('live', 'completed', 'lost')),
    last_call       integer not null default 0,
    final_call      integer not null default 0,
    started_at      timestamptz not null,
    ended_at        timestamptz,
    primary key (tenant_id, attempt_id),
    unique (tenant_id, batch_id, fencing_token),
    foreign key (tenant_id, batch_id) references batches
);

-- The calls of an attempt, so that the same call again gives the same answer; a repeat gets a further number, under
-- which keys are claimed that were busy the first time.
create table event_calls (
    tenant_id       text not null,
    attempt_id      bigint not null,
    call_digest     bytea not null,
    call_no         integer not null,
    primary key (tenant_id, attempt_id, call_digest, call_no),
    foreign key (tenant_id, attempt_id) references batch_attempts
);

-- The event ledger: which attempt claimed a key last. scope = 128-bit digest of job type, source and params;
-- event = 128-bit digest of the key. was_final: an earlier attempt had already processed it.
create table event_keys (
    tenant_id       text not null,
    scope           bytea not null,
    event           bytea not null,
    attempt_id      bigint not null,
    call_no         integer not null,
    was_final       boolean not null default false,
    primary key (tenant_id, scope, event)
);

-- Requests ------------------------------------------------------------------------------------

create table idempotency_keys (
    tenant_id       text not null references tenants,
    client_id       text not null,
    key             text not null,
    path            text not null,
    body_digest     bytea not null,
    status          integer,
    headers         jsonb,
    body            bytea,
    created_at      timestamptz not null default clock_timestamp(),
    primary key (tenant_id, client_id, key, path)
);
create index idempotency_keys_age on idempotency_keys (created_at);
