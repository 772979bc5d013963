-- What admission needs beside its leases.

-- The time of the decision that this transaction makes: the lock's holder sets it once, and every statement after it
-- reads the same. Null before, also in a session that has decided before.
create function decided_at() returns timestamptz language sql stable as
$$ select nullif(current_setting('jobengine.decided_at', true), '')::timestamptz $$;

-- What the policy said before, so that a bucket is never refilled at a rate from after the time.
create table policy_history (
    version         bigint primary key,
    document        jsonb not null,
    replaced_at     timestamptz not null
);
alter table policy_history enable row level security;
alter table policy_history force row level security;
create policy anybody_reads on policy_history for select to jobengine_app using (true);
create policy platform_writes on policy_history for insert to jobengine_app
    with check (current_setting('jobengine.tenant', true) = '_platform');
grant select, insert on policy_history to jobengine_app;

-- A lease belongs to the account rows that its transaction holds, and these to the tenant. Asking for the tenant again
-- for each lease was a third of the time of a grant, and locked one row for every server at once.
alter table leases drop constraint leases_tenant_id_fkey;

-- Rows that change with every group of decisions: room for the next version on the same page, and frequent cleaning.
alter table admission_accounts set (fillfactor = 20, autovacuum_vacuum_threshold = 500,
    autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_cost_delay = 0);
alter table admission_grants set (autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0);
alter table leases set (autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 1);

-- For the sweeper, which looks for tenants that nobody asks for any more; what it finds is settled in the tenant's name.
create index admission_grants_age on admission_grants (at);
create policy every_tenant on admission_grants for select to jobengine_system using (true);
grant select on admission_grants to jobengine_system;
