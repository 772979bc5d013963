-- Allocations, changes that wait, requests.

-- Pools belong to the platform. A pool is one row; who shares it stands beside it, one row a tenant, so that a tenant's
-- transaction can read its own share and no other. epoch counts the times that the pool was put into effect.
create table allocations (
    tenant_id       text not null references tenants check (tenant_id = '_platform'),
    job_type        text not null,
    capacity        bigint check (capacity >= 0),
    strategy        text not null check (strategy in ('unlimited', 'proportional', 'priority', 'reserved', 'max_limit')),
    status          text not null check (status in ('draft', 'applying', 'applied', 'stopped')),
    version         bigint not null,
    created_at      timestamptz not null,
    updated_at      timestamptz not null,
    updated_by      text not null,
    entry_id        uuid not null,
    epoch           bigint not null default 0,
    plan_token      text,
    started_at      timestamptz,
    started_by      text,
    client_id       text,
    token_id        text,
    trace_id        text,
    apply_entry_id  uuid,
    ended_at        timestamptz,
    stopped_by      text,
    worker          text,
    worked_until    timestamptz not null default '-infinity',
    primary key (tenant_id, job_type),
    foreign key (tenant_id, entry_id) references audit_entries,
    foreign key (tenant_id, apply_entry_id) references audit_entries
);
create index allocations_applying on allocations (tenant_id, worked_until) where status = 'applying';
-- A pool that is made anew goes on counting: what a late process still carries must stay older.
create sequence allocation_epochs;

create table allocation_members (
    tenant_id       text not null check (tenant_id = '_platform'),
    job_type        text not null,
    member          text not null,
    weight          bigint not null check (weight >= 0),
    priority        bigint not null,
    reserved        bigint not null check (reserved >= 0),
    max_limit       bigint check (max_limit >= reserved),
    demand          bigint check (demand >= 0),
    capacity        bigint,
    strategy        text not null,
    primary key (tenant_id, job_type, member),
    foreign key (tenant_id, job_type) references allocations on delete cascade
);
create index allocation_members_of_tenant on allocation_members (member, job_type);

-- What an apply has to do, in two stages: everybody down to the smaller of then and now, and only then up.
create table allocation_steps (
    tenant_id       text not null check (tenant_id = '_platform'),
    job_type        text not null,
    member          text not null,
    epoch           bigint not null,
    quota_id        uuid,
    from_active     bigint not null,
    to_active       bigint not null,
    stage           smallint not null default 0 check (stage between 0 and 2),
    primary key (tenant_id, job_type, member),
    foreign key (tenant_id, job_type) references allocations on delete cascade
);

-- In the tenant's own transaction: how far which epoch has come here. A step that is done is not done again, and one of
-- an older epoch never comes after one of a newer.
create table allocation_marks (
    tenant_id       text not null references tenants,
    job_type        text not null,
    epoch           bigint not null,
    stage           smallint not null check (stage between 1 and 2),
    primary key (tenant_id, job_type)
);

-- Changes that wait, or waited, for a second person, and emergencies that did not. Why stands with the audit entries.
create table quota_changes (
    tenant_id       text not null references tenants,
    change_id       uuid not null,
    kind            text not null check (kind in ('create', 'adjust', 'override')),
    origin          text not null check (origin in ('operator', 'request')),
    status          text not null check (status in ('pending', 'approved', 'rejected', 'expired', 'emergency')),
    quota_id        uuid,
    job_type        text,
    before          jsonb,
    wanted          jsonb not null,
    starts_at       timestamptz,
    until           timestamptz,
    requested_by    text not null,
    client_id       text not null,
    requested_at    timestamptz not null,
    expires_at      timestamptz not null,
    entry_id        uuid not null,
    decided_by      text,
    decided_at      timestamptz,
    decision_entry_id uuid,
    primary key (tenant_id, change_id),
    foreign key (tenant_id, entry_id) references audit_entries,
    foreign key (tenant_id, decision_entry_id) references audit_entries
);
create index quota_changes_pending on quota_changes (expires_at) where status = 'pending';
create index quota_changes_waiting on quota_changes (tenant_id, change_id) where status = 'pending';

-- From then on leases above the limit are not renewed; null: they run on.
alter table quotas add column drain_after timestamptz;
create index quotas_draining on quotas (tenant_id) where drain_after is not null;

do $$
declare
    name text;
begin
    foreach name in array array[
        'allocations', 'allocation_members', 'allocation_steps', 'allocation_marks', 'quota_changes'
    ] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        execute format(
            'create policy own_tenant on %I to jobengine_app using (tenant_id = current_setting(''jobengine.tenant'', true))',
            name);
    end loop;
    foreach name in array array['quotas', 'quota_overrides', 'quota_changes'] loop
        execute format('create policy every_tenant on %I for select to jobengine_system using (true)', name);
    end loop;
end
$$;

create policy own_share on allocation_members for select to jobengine_app
    using (member = current_setting('jobengine.tenant', true));

grant select, insert, update, delete on allocations, allocation_members, allocation_steps to jobengine_app;
grant select, insert, update on allocation_marks, quota_changes to jobengine_app;
grant usage on sequence allocation_epochs to jobengine_app;
grant select on quotas, quota_overrides, quota_changes to jobengine_system;
