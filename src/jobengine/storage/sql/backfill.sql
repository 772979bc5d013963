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
-- The first untouched stretches of a backfill of tenant_id that are still to be run. Forward, batches are made ready from
-- the start: what is left lies behind the last of them, and no stretch before it is looked at again.
select first_index, last_index, status from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
    and first_index > coalesce((select max(partition_index) from batches
        where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s), -1)
order by first_index limit %(most)s;

-- name: backfill_last_ranges
-- The last untouched stretches of a backfill of tenant_id that are still to be run; backward, they lie before the batches.
select first_index, last_index, status from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
    and first_index < coalesce((select min(partition_index) from batches
        where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s), %(total)s)
order by first_index desc limit %(most)s;

-- name: backfill_retried_ranges
-- Stretches of a backfill of tenant_id that are to be run and lie among batches: their batches failed and are retried.
select first_index, last_index, status from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending'
order by first_index * %(sign)s::integer limit %(most)s;

-- name: backfill_drop_ranges
-- Forget stretches of a backfill of tenant_id by where they begin; what is left of them is stored again.
delete from backfill_ranges
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and first_index = any(%(firsts)s::bigint[]);

-- name: backfill_lock
-- A backfill of tenant_id, locked until the transaction ends.
select * from backfills where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s for update;

-- name: backfill_save
-- Store where a locked backfill of tenant_id stands.
update backfills set status = %(status)s, stop_reason = %(stop_reason)s, untouched = %(untouched)s,
    succeeded = %(succeeded)s, failed = %(failed)s, canceled = %(canceled)s, events_processed = %(events_processed)s,
    events_duplicates = %(events_duplicates)s, events_failed = %(events_failed)s, started_at = %(started_at)s,
    dispatched_at = %(dispatched_at)s, blocked_by = %(blocked_by)s, cancel_requested_at = %(cancel_requested_at)s,
    finished_at = %(finished_at)s
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s;

-- name: backfill_cancel_untouched
-- Cancel the stretches of a backfill of tenant_id that nobody touched.
update backfill_ranges set status = 'canceled'
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending';

-- name: backfill_cancel_pending
-- Cancel the batches of a backfill of tenant_id that were made ready and do not run.
update batches set status = 'canceled', finished_at = %(now)s
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'pending';

-- name: backfill_park_failed
-- Let the failed batches of a backfill of tenant_id be stretches of partitions again, but for the first of them, however
-- many they are: what waits must stay few. How many partitions they are; one that a stretch holds already is not counted.
with failed as (
    select b.partition_index as k from batches b
    where b.tenant_id = %(tenant_id)s and b.backfill_id = %(backfill_id)s and b.status = 'failed'
        and b.partition_index > coalesce((
            select r.last_index from backfill_ranges r
            where r.tenant_id = %(tenant_id)s and r.backfill_id = %(backfill_id)s and r.first_index <= b.partition_index
            order by r.first_index desc limit 1), -1)
), in_order as (
    select k, row_number() over (order by k * %(sign)s::integer) as place from failed
), parked as (
    select k, k - row_number() over (order by k) as island from in_order where place > %(but)s
), stored as (
    insert into backfill_ranges (tenant_id, backfill_id, first_index, last_index, status)
    select %(tenant_id)s, %(backfill_id)s, min(k), max(k), 'pending' from parked group by island
    returning last_index - first_index + 1 as partitions
)
select coalesce(sum(partitions), 0)::bigint as partitions from stored;

-- name: backfill_retry_failed
-- Make the failed batches of a backfill of tenant_id that no stretch holds ready again, with all their attempts.
update batches b set status = 'pending', attempts = 0, not_before = 'epoch', error = null, finished_at = null
where b.tenant_id = %(tenant_id)s and b.backfill_id = %(backfill_id)s and b.status = 'failed'
    and b.partition_index > coalesce((
        select r.last_index from backfill_ranges r
        where r.tenant_id = %(tenant_id)s and r.backfill_id = %(backfill_id)s and r.first_index <= b.partition_index
        order by r.first_index desc limit 1), -1);

-- name: backfill_revive_batches
-- Make the batches of a backfill of tenant_id ready again that a stop rule canceled.
update batches set status = 'pending', finished_at = null
where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'canceled';

-- name: backfill_revive_ranges
-- Let the stretches of a backfill of tenant_id be run again that a stop rule canceled; how many partitions they are.
with revived as (
    update backfill_ranges set status = 'pending'
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status = 'canceled'
    returning last_index - first_index + 1 as partitions
)
select coalesce(sum(partitions), 0)::bigint as partitions from revived;

-- name: backfill_open
-- How many batches of a backfill of tenant_id wait and run.
select count(*) filter (where status = 'pending') as pending, count(*) filter (where status = 'running') as running
from batches where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and status in ('pending', 'running');

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
-- the batches in it that failed and wait to be retried.
select * from (
    (select batch_id, status, partition_index as first_index, partition_index as last_index, attempts, error, not_before
    from batches b
    where tenant_id = %(tenant_id)s and backfill_id = %(backfill_id)s and partition_index > %(after)s
        and (b.status <> 'failed' or b.partition_index > coalesce((
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

-- name: batch_add
-- Make partitions of a backfill of tenant_id ready: from now on they are batches with ids; a retried one has its own.
insert into batches (tenant_id, batch_id, backfill_id, partition_index, job_type, window_start, window_end, status)
select %(tenant_id)s, b.batch_id, %(backfill_id)s, b.partition_index, %(job_type)s, b.window_start, b.window_end, 'pending'
from unnest(%(batch_ids)s::uuid[], %(indices)s::bigint[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
    as b(batch_id, partition_index, window_start, window_end)
on conflict (tenant_id, backfill_id, partition_index) do update
    set status = 'pending', attempts = 0, not_before = 'epoch', error = null, finished_at = null
    where batches.status = 'failed';

-- name: batch_due_types
-- Which of some job types of tenant_id have a batch that is due: a claim that finds none takes no lock and writes nothing.
select distinct f.job_type from backfills f
where f.tenant_id = %(tenant_id)s and f.status in ('pending', 'running') and f.handler_kind = %(handler_kind)s
    and f.job_type = any(%(job_types)s)
    and exists (
        select from batches b
        where b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id and b.status = 'pending'
            and b.not_before <= clock_timestamp());

-- name: batch_candidates
-- Eligible backfills of tenant_id, the fairest first, each with its next batch: the one place that decides eligibility.
-- A backfill is eligible while it is neither paused nor ended, below its own max_active, and has a batch that is due.
select f.backfill_id, f.job_type, f.lease_seconds, n.batch_id
from backfills f
cross join lateral (
    select count(*) as running from batches r
    where r.tenant_id = %(tenant_id)s and r.backfill_id = f.backfill_id and r.status = 'running'
) o
cross join lateral (
    select b.batch_id from batches b
    where b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id and b.status = 'pending'
        and b.not_before <= %(now)s
    order by case when f.run_order = 'forward' then b.partition_index else -b.partition_index end
    limit 1
) n
where f.tenant_id = %(tenant_id)s and f.status in ('pending', 'running') and f.handler_kind = %(handler_kind)s
    and f.job_type = any(%(job_types)s) and (f.max_active is null or o.running < f.max_active)
order by o.running, f.dispatched_at, f.backfill_id
limit 1;

-- name: batch_start
-- Hand a batch of tenant_id out under a lease.
update batches set status = 'running', attempts = attempts + 1, fencing_token = %(fencing_token)s, lease_id = %(lease_id)s,
    lease_expires_at = %(lease_expires_at)s, error = null
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s
returning *;

-- name: attempt_add
-- Begin an attempt at a batch of tenant_id.
insert into batch_attempts (tenant_id, batch_id, backfill_id, fencing_token, client_id, state, started_at)
values (%(tenant_id)s, %(batch_id)s, %(backfill_id)s, %(fencing_token)s, %(client_id)s, 'live', %(now)s);

-- name: attempt_find
-- The attempt at a batch of tenant_id that holds this fencing token.
select attempt_id, state, last_call, final_call from batch_attempts
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s and fencing_token = %(fencing_token)s;

-- name: attempt_lock
-- The attempt at a batch of tenant_id that holds this fencing token, locked: nobody ends it before this transaction does.
select attempt_id, state, last_call from batch_attempts
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s and fencing_token = %(fencing_token)s
for update;

-- name: attempt_scope
-- What a batch of tenant_id works on, and whether its lease lives; read after the attempt is locked.
select b.backfill_id, f.job_type, f.source, f.params_digest, f.reprocess,
    b.lease_expires_at > clock_timestamp() and l.ended_at is null and l.lease_id is not null as is_held
from batches b
join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
left join leases l on l.tenant_id = b.tenant_id and l.lease_id = b.lease_id
where b.tenant_id = %(tenant_id)s and b.batch_id = %(batch_id)s;

-- name: attempt_end
-- End a live attempt at a batch of tenant_id; its claims are final with 'completed' and free again with 'lost'.
update batch_attempts set state = %(state)s, ended_at = %(now)s
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s and fencing_token = %(fencing_token)s and state = 'live';

-- name: attempt_checkpoint
-- Make everything that an attempt of tenant_id claimed so far final.
update batch_attempts set final_call = last_call
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s and fencing_token = %(fencing_token)s;

-- name: batch_get
-- One batch of tenant_id, and whether the admission it runs under lives.
select b.*, l.ended_at is null and l.lease_id is not null as is_admitted from batches b
left join leases l on l.tenant_id = b.tenant_id and l.lease_id = b.lease_id
where b.tenant_id = %(tenant_id)s and b.batch_id = %(batch_id)s;

-- name: batch_beat
-- Keep a running batch of tenant_id for longer, with what its worker reports.
update batches set lease_expires_at = %(lease_expires_at)s,
    checkpoint = case when %(has_checkpoint)s then %(checkpoint)s else checkpoint end,
    events_processed = %(events_processed)s, events_duplicates = %(events_duplicates)s, events_failed = %(events_failed)s
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s;

-- name: batch_end
-- End the run of a batch of tenant_id: for good, or back to waiting until not_before.
update batches set status = %(status)s, not_before = %(not_before)s, attempts = %(attempts)s, error = %(error)s,
    lease_id = null, lease_expires_at = null, events_processed = %(events_processed)s,
    events_duplicates = %(events_duplicates)s, events_failed = %(events_failed)s, finished_at = %(finished_at)s
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s;

-- name: batch_overdue
-- Running batches of tenant_id whose lease or admission is over, or whose backfill has waited long enough for them to end.
select b.* from batches b
join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
left join leases l on l.tenant_id = b.tenant_id and l.lease_id = b.lease_id
where b.tenant_id = %(tenant_id)s and b.status = 'running'
    and (b.lease_expires_at <= %(now)s or l.lease_id is null or l.ended_at is not null
        or f.status = 'canceling' and f.cancel_requested_at <= %(now)s::timestamptz - interval '10 seconds')
order by b.batch_id limit %(most)s;

-- name: system_find_batch_work
-- Tenants with a batch that is due for one of these handlers, or with a running batch that is overdue. Only backfills at
-- work are looked at, and of their batches only one that is due and those that run.
select tenant_id, bool_or(due) as due, bool_or(overdue) as overdue
from (
    select f.tenant_id,
        f.status in ('pending', 'running') and f.handler_kind = 'embedded' and f.job_type = any(%(job_types)s)
            and exists (
                select from batches b
                where b.tenant_id = f.tenant_id and b.backfill_id = f.backfill_id and b.status = 'pending'
                    and b.not_before <= clock_timestamp())
            and (f.max_active is null or f.max_active > (
                select count(*) from batches b
                where b.tenant_id = f.tenant_id and b.backfill_id = f.backfill_id and b.status = 'running')) as due,
        exists (
            select from batches b
            left join leases l on l.tenant_id = b.tenant_id and l.lease_id = b.lease_id
            where b.tenant_id = f.tenant_id and b.backfill_id = f.backfill_id and b.status = 'running'
                and (b.lease_expires_at <= clock_timestamp() or l.lease_id is null or l.ended_at is not null
                    or f.status = 'canceling'
                        and f.cancel_requested_at <= clock_timestamp() - interval '10 seconds')) as overdue
    from backfills f
    where f.status in ('pending', 'running', 'paused', 'canceling')
) as work
where due or overdue
group by tenant_id;

-- name: event_call
-- The numbers of a claim call of an attempt of tenant_id, if it was made before.
select call_no from event_calls
where tenant_id = %(tenant_id)s and attempt_id = %(attempt_id)s and call_digest = %(call_digest)s;

-- name: event_call_add
-- Remember a claim call of an attempt of tenant_id.
insert into event_calls (tenant_id, attempt_id, call_digest, call_no)
values (%(tenant_id)s, %(attempt_id)s, %(call_digest)s, %(call_no)s);

-- name: attempt_called
-- Count a claim call of an attempt of tenant_id.
update batch_attempts set last_call = %(call_no)s where tenant_id = %(tenant_id)s and attempt_id = %(attempt_id)s;

-- name: event_insert
-- Claim the event keys of tenant_id that nobody ever claimed, in the order of their digests so that two claims never
-- wait for each other; returns those that were new.
insert into event_keys (tenant_id, scope, event, attempt_id, call_no)
select %(tenant_id)s, %(scope)s, e, %(attempt_id)s, %(call_no)s from unnest(%(events)s::bytea[]) as e order by e
on conflict do nothing
returning event;

-- name: event_lock
-- The event keys of tenant_id that were claimed before, locked in the order of their digests. How their attempts stand is
-- read by another statement: in this one, a row that changed while we waited would no longer find its attempt.
select event, attempt_id, call_no, was_final from event_keys
where tenant_id = %(tenant_id)s and scope = %(scope)s and event = any(%(events)s::bytea[])
order by event
for update;

-- name: attempt_states
-- How attempts of tenant_id stand.
select attempt_id, backfill_id, state, final_call from batch_attempts
where tenant_id = %(tenant_id)s and attempt_id = any(%(attempt_ids)s::bigint[]);

-- name: event_take_over
-- Claim event keys of tenant_id again; was_final keeps that they had been processed before.
update event_keys k set attempt_id = %(attempt_id)s, call_no = %(call_no)s, was_final = t.was_final
from unnest(%(events)s::bytea[], %(finals)s::boolean[]) as t(event, was_final)
where k.tenant_id = %(tenant_id)s and k.scope = %(scope)s and k.event = t.event;
