-- Backfills at scale: who may hand out a batch is decided here alone, and the ledger of event keys stays small and fast.

-- The next batch of a backfill, in either order, and those of it that run. Older indexes over all batches of a tenant go:
-- before a table was ever analysed, the planner cannot tell that they are the worse way to one backfill's batches.
create index batches_next on batches (tenant_id, backfill_id, partition_index) where status = 'pending';
create index batches_at_work on batches (tenant_id, backfill_id, lease_expires_at) where status = 'running';
drop index batches_waiting;
drop index batches_running;

-- The one place that decides whether a backfill is eligible: it is neither paused nor ended, it runs fewer batches than
-- its own maximum, and one of its batches is due.
create view eligible_backfills with (security_invoker = true) as
select f.tenant_id, f.backfill_id, f.job_type, f.handler_kind, f.run_order, f.lease_seconds, f.dispatched_at,
    o.running, f.max_active - o.running as room
from backfills f
cross join lateral (
    select count(*) as running from batches r
    where r.tenant_id = f.tenant_id and r.backfill_id = f.backfill_id and r.status = 'running'
) o
cross join lateral (
    -- In their order, because the index that has it is the one that finds them.
    select 1 as due from batches b
    where b.tenant_id = f.tenant_id and b.backfill_id = f.backfill_id and b.status = 'pending'
        and b.not_before <= clock_timestamp()
    order by b.partition_index limit 1
) n
where f.status in ('pending', 'running') and (f.max_active is null or o.running < f.max_active);
grant select on eligible_backfills to jobengine_app, jobengine_system;

-- The next stretch of a backfill that is to be run, in either order, however many are skipped around it.
create index backfill_ranges_next on backfill_ranges (tenant_id, backfill_id, first_index) where status = 'pending';
-- A plan around a hundred thousand islands is as many rows: looking their one backfill up for each is most of the work,
-- and no backfill is ever deleted.
alter table backfill_ranges drop constraint backfill_ranges_tenant_id_backfill_id_fkey;

-- Event keys are forgotten by the age of the attempt that claimed them last. Attempts are numbered as time passes, and so
-- are their keys in the table: a few bytes for each megabyte tell where the old ones lie.
create index event_keys_age on event_keys using brin (attempt_id) with (autosummarize = on);
create index batch_attempts_age on batch_attempts (ended_at) where ended_at is not null;
create index batch_attempts_number on batch_attempts (attempt_id);
do $$
declare
    name text;
begin
    foreach name in array array['batch_attempts', 'event_calls', 'event_keys'] loop
        execute format('create policy every_tenant on %I to jobengine_system using (true)', name);
    end loop;
end
$$;
grant select, delete on batch_attempts, event_calls, event_keys to jobengine_system;
