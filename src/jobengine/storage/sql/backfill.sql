-- name: suppression_lock
-- Take the suppression key of tenant_id: of any number of identical requests one decides at a time.
insert into suppression_keys (tenant_id, job_type, source, params_digest)
values (%(tenant_id)s, %(job_type)s, %(source)s, %(params_digest)s)
on conflict (tenant_id, job_type, source, params_digest) do update set source = excluded.source;

-- name: backfill_earlier
-- Backfills of tenant_id under one suppression key whose window overlaps and that could suppress a request.
select backfill_id, status, window_start, window_end, created_at from backfills
where tenant_id = %(tenant_id)s and job_type = %(job_type)s and source = %(source)s and params_digest = %(params_digest)s
    and status in ('pending', 'running', 'paused', 'canceling', 'completed')
    and window_start < %(window_end)s and window_end > %(window_start)s;

-- name: backfill_succeeded
-- Where batches of tenant_id under one suppression key succeeded within a window, merged.
select lower(s) as window_start, upper(s) as window_end
from (
    select unnest(range_agg(tstzrange(b.window_start, b.window_end))) as s
    from backfills f join batches b on b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id
    where f.tenant_id = %(tenant_id)s and f.job_type = %(job_type)s and f.source = %(source)s
        and f.params_digest = %(params_digest)s and f.window_start < %(window_end)s and f.window_end > %(window_start)s
        and b.status = 'succeeded' and b.window_start < %(window_end)s and b.window_end > %(window_start)s
) as merged;

-- name: backfill_ended
-- Batches of tenant_id under one suppression key that ended within a window, wherever one of them failed.
with ended as (
    select b.status, b.window_start, b.window_end, b.finished_at, tstzrange(b.window_start, b.window_end) as span
    from backfills f join batches b on b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id
    where f.tenant_id = %(tenant_id)s and f.job_type = %(job_type)s and f.source = %(source)s
        and f.params_digest = %(params_digest)s and f.window_start < %(window_end)s and f.window_end > %(window_start)s
        and b.status in ('succeeded', 'failed')
        and b.window_start < %(window_end)s and b.window_end > %(window_start)s
)
select status, window_start, window_end, finished_at from ended
where span && (select range_agg(span) from ended where status = 'failed');

-- name: backfill_add
-- Store a new backfill of tenant_id.
insert into backfills (tenant_id, backfill_id, job_type, source, params_digest, params, window_start, window_end, partition,
    run_order, reprocess, max_active, max_failures, max_failure_rate, handler_kind, handler_version, lease_seconds,
    max_attempts, status, total, untouched, skipped, requested_by, token_id, entry_id, trace_id, created_at)
values (%(tenant_id)s, %(backfill_id)s, %(job_type)s, %(source)s, %(params_digest)s, %(params)s, %(window_start)s,
    %(window_end)s, %(partition)s, %(run_order)s, %(reprocess)s, %(max_active)s, %(max_failures)s, %(max_failure_rate)s,
    %(handler_kind)s, %(handler_version)s, %(lease_seconds)s, %(max_attempts)s, 'pending', %(total)s, %(untouched)s,
    %(skipped)s, %(requested_by)s, %(token_id)s, %(entry_id)s, %(trace_id)s, %(created_at)s);

-- name: backfill_add_ranges
-- Store stretches of untouched partitions of a backfill of tenant_id.
insert into backfill_ranges (tenant_id, backfill_id, first_index, last_index, status)
select %(tenant_id)s, %(backfill_id)s, r.first_index, r.last_index, r.status
from unnest(%(firsts)s::bigint[], %(lasts)s::bigint[], %(statuses)s::text[]) as r(first_index, last_index, status);

-- name: backfill_first_ranges
-- The first stretches of a backfill of tenant_id that are to be run: untouched ones, and those whose batches are retried.
select first_index, last_index, status from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
order by first_index limit %(most)s;

-- name: backfill_last_ranges
-- The last stretches of a backfill of tenant_id that are to be run: untouched ones, and those whose batches are retried.
select first_index, last_index, status from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
order by first_index desc limit %(most)s;

-- name: backfill_drop_ranges
-- Forget stretches of a backfill of tenant_id by where they begin; what is left of them is stored again.
delete from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and first_index = any(%(firsts)s::bigint[]);

-- name: backfill_save
-- Store where locked backfills of tenant_id stand.
update backfills f set status = s.status, stop_reason = s.stop_reason, untouched = s.untouched, succeeded = s.succeeded,
    failed = s.failed, canceled = s.canceled, events_processed = s.events_processed,
    events_duplicates = s.events_duplicates, events_failed = s.events_failed, started_at = s.started_at,
    dispatched_at = s.dispatched_at, blocked_by = s.blocked_by, cancel_requested_at = s.cancel_requested_at,
    finished_at = s.finished_at
from unnest(%(backfill_id)s::uuid[], %(status)s::text[], %(stop_reason)s::text[], %(untouched)s::bigint[],
    %(succeeded)s::bigint[], %(failed)s::bigint[], %(canceled)s::bigint[], %(events_processed)s::bigint[],
    %(events_duplicates)s::bigint[], %(events_failed)s::bigint[], %(started_at)s::timestamptz[],
    %(dispatched_at)s::timestamptz[], %(blocked_by)s::text[], %(cancel_requested_at)s::timestamptz[],
    %(finished_at)s::timestamptz[])
    as s(backfill_id, status, stop_reason, untouched, succeeded, failed, canceled, events_processed, events_duplicates,
        events_failed, started_at, dispatched_at, blocked_by, cancel_requested_at, finished_at)
where f.tenant_id = %(tenant_id)s and f.backfill_id = s.backfill_id;

-- name: backfill_cancel_untouched
-- Cancel the stretches of a backfill of tenant_id that nobody touched.
update backfill_ranges set status = 'canceled'
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending';

-- name: backfill_cancel_pending
-- Cancel the batches of a backfill of tenant_id that were made ready and do not run; how many they are.
with ended as (
    update batches set status = 'canceled', finished_at = %(now)s
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
    returning 1
)
select count(*)::integer as ended from ended;

-- name: backfill_park
-- Let the batches of a backfill of tenant_id that failed, and those that a stop rule canceled, be stretches of partitions
-- again, but for those that a stretch holds already; how many they are.
with parked as (
    select b.partition_index as k, b.status, b.partition_index - row_number() over (order by b.partition_index) as island
    from batches b
    where b.tenant_id = %(tenant_id)s and b.backfill_id = %(backfill_id)s and b.status in ('failed', 'canceled')
        and b.partition_index > coalesce((
            select r.last_index from backfill_ranges r
            where r.tenant_id = %(tenant_id)s and r.backfill_id = %(backfill_id)s and r.first_index <= b.partition_index
            order by r.first_index desc limit 1), -1)
), stored as (
    insert into backfill_ranges (tenant_id, backfill_id, first_index, last_index, status)
    select %(tenant_id)s, %(backfill_id)s, min(k), max(k), 'pending' from parked group by island
)
select count(*) filter (where status = 'failed') as failed, count(*) filter (where status = 'canceled') as canceled
from parked;

-- name: backfill_revive_ranges
-- Let the stretches of a backfill of tenant_id be run again that a stop rule canceled; how many partitions they are.
with revived as (
    update backfill_ranges set status = 'pending'
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'canceled'
    returning last_index - first_index + 1 as partitions
)
select coalesce(sum(partitions), 0)::bigint as partitions from revived;

-- name: backfill_list
-- Backfills of tenant_id, oldest first, after a cursor, with the words of the request.
select f.*, o.pending, o.running, r.text as reason, t.text as ticket, clock_timestamp() as now
from backfills f
cross join lateral (
    select count(*) filter (where b.status = 'pending') as pending, count(*) filter (where b.status = 'running') as running
    from batches b where b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id
        and b.status in ('pending', 'running')
) o
left join audit_texts r on r.tenant_id = f.tenant_id and r.entry_id = f.entry_id and r.field = 'reason'
left join audit_texts t on t.tenant_id = f.tenant_id and t.entry_id = f.entry_id and t.field = 'ticket'
where f.tenant_id = %(tenant_id)s
    and (%(backfill_id)s::uuid is null or f.backfill_id = %(backfill_id)s)
    and (%(status)s::text is null or f.status = %(status)s)
    and (%(job_type)s::text is null or f.job_type = %(job_type)s)
    and (%(source)s::text is null or f.source = %(source)s)
    and (%(after)s::uuid is null or f.backfill_id > %(after)s)
order by f.backfill_id limit %(most)s;

-- name: batch_list
-- Batches of a backfill of tenant_id in the order of their windows, after an index; a stretch is one row, and stands for
-- the batches in it that wait to be retried.
select * from (
    (select batch_id, status, partition_index as first_index, partition_index as last_index, attempts, error, not_before
    from batches b
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and partition_index > %(after)s
        and (b.status not in ('failed', 'canceled') or b.partition_index > coalesce((
            select r.last_index from backfill_ranges r
            where r.tenant_id = %(tenant_id)s and r.backfill_id = %(backfill_id)s and r.first_index <= b.partition_index
            order by r.first_index desc limit 1), -1))
    order by partition_index limit %(most)s)
    union all
    (select null, status, first_index, last_index, 0, null, null
    from backfill_ranges
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and first_index > %(after)s
    order by first_index limit %(most)s)
) as rows
order by first_index limit %(most)s;

-- name: backfill_lock_many
-- Backfills of tenant_id, locked until the transaction ends, always in the same order.
select * from backfills where tenant_id = %(tenant_id)s and backfill_id = any(%(backfill_ids)s::uuid[])
order by backfill_id for update;

-- name: backfill_open
-- How many batches of backfills of tenant_id wait and run; a backfill without any has no row.
select backfill_id, count(*) filter (where status = 'pending') as pending,
    count(*) filter (where status = 'running') as running
from batches where tenant_id = %(tenant_id)s and backfill_id = any(%(backfill_ids)s::uuid[])
    and status in ('pending', 'running')
group by backfill_id;
