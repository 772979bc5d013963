-- Heartbeats, anchors, witnesses and key validity of the audit log.

-- Since when an entry waits, on the database's clock: its id only knows that of the server which made it.
alter table audit_intake add column queued_at timestamptz not null default clock_timestamp();

alter table audit_logs
    add column signed_by        text,                       -- the key under the checkpoint
    add column anchored_size    bigint not null default 0,  -- the newest head that the platform's log holds
    add column anchored_in      uuid,                       -- its entry there
    add column stuck_since      timestamptz,                -- the log cannot go on
    add column stuck_because    text;

alter table installation add column beat_at timestamptz not null default '-infinity';

-- Processes that sequence now: each of them gets its share of the shards.
create table audit_sequencers (
    owner           text primary key,
    lease_until     timestamptz not null
);

-- Rare actions, and the grants of tokens, are found without reading the whole log.
create index audit_entries_action on audit_entries (tenant_id, action, entry_id);

-- What each witness outside signed last of each log.
create table audit_cosignatures (
    tenant_id       text not null references audit_logs,
    witness         text not null,
    size            bigint not null,
    checkpoint      text not null,
    line            text not null,
    cosigned_at     timestamptz not null,
    primary key (tenant_id, witness)
);

alter table audit_cosignatures enable row level security;
alter table audit_cosignatures force row level security;
create policy own_tenant on audit_cosignatures to jobengine_app
    using (tenant_id = current_setting('jobengine.tenant', true));
create policy every_tenant on audit_cosignatures to jobengine_system using (true);
-- A governor acts in other tenants than the one that granted the token: whether a grant or a use exists is asked in all.
create policy tokens_of_every_tenant on audit_entries for select to jobengine_system using (true);

grant select on audit_cosignatures to jobengine_app;
grant select, insert, update on audit_cosignatures to jobengine_system;
grant select, insert, update, delete on audit_sequencers to jobengine_system;
grant select (tenant_id, action, token_id) on audit_entries to jobengine_system;
