-- A plan is made while tables are young and every way through them looks as good, and is kept. So whatever joins a list
-- says the list a second time, as `= any(…)`: then the key's index is the way, and no batch of the tenant but these is read.

-- name: batch_add
-- Make partitions of a backfill of tenant_id ready: from now on they are batches with ids; a retried one has its own.
insert into batches (tenant_id, batch_id, backfill_id, partition_index, job_type, window_start, window_end, status)
select %(tenant_id)s, b.batch_id, %(backfill_id)s, b.partition_index, %(job_type)s, b.window_start, b.window_end, 'pending'
from unnest(%(batch_ids)s::uuid[], %(indices)s::bigint[], %(starts)s::timestamptz[], %(ends)s::timestamptz[])
    as b(batch_id, partition_index, window_start, window_end)
on conflict (tenant_id, backfill_id, partition_index) do update
    set status = 'pending', attempts = 0, not_before = 'epoch', error = null, finished_at = null
    where batches.status in ('failed', 'canceled');

-- name: attempt_checkpoint
-- Make everything that an attempt of tenant_id claimed so far final.
update batch_attempts set final_call = last_call
where tenant_id = %(tenant_id)s and batch_id = %(batch_id)s and fencing_token = %(fencing_token)s;

-- name: batch_beat
-- Keep a running batch of tenant_id for longer, with what its worker reports.
update batches set lease_expires_at = %(lease_expires_at)s,
    checkpoint = case when %(has_checkpoint)s then %(checkpoint)s else checkpoint end,
    events_processed = %(events_processed)s, events_duplicates = %(events_duplicates)s, events_failed = %(events_failed)s
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

-- name: batch_due_types
-- Which of some job types of tenant_id have a batch that is due: a claim that finds none takes no lock and writes nothing.
select distinct job_type from eligible_backfills
where tenant_id = %(tenant_id)s and handler_kind = %(handler_kind)s and job_type = any(%(job_types)s);

-- name: backfill_fairest
-- The eligible backfills of tenant_id that a claim is about, the fairest first: whoever has the fewest running, and of
-- those the one that has waited longest. Each has a batch that is due, so a claim looks at no more backfills than it
-- wants batches.
select backfill_id from eligible_backfills
where tenant_id = %(tenant_id)s and handler_kind = %(handler_kind)s and job_type = any(%(job_types)s)
order by running, dispatched_at, backfill_id
limit %(most)s;

-- name: batch_candidates
-- The next batches of some backfills of tenant_id that are locked, in the order in which they are handed out, as if one
-- were handed out at a time; a backfill that is not eligible (by now) has none.
select n.batch_id, f.backfill_id, f.job_type, f.lease_seconds
from eligible_backfills f
cross join lateral (
    select d.batch_id, row_number() over (order by d.place) as turn
    from (
        (select b.batch_id, b.partition_index as place from batches b
        where f.run_order = 'forward' and b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id
            and b.status = 'pending' and b.not_before <= clock_timestamp()
        order by b.partition_index limit %(most)s)
        union all
        (select b.batch_id, -b.partition_index from batches b
        where f.run_order = 'backward' and b.tenant_id = %(tenant_id)s and b.backfill_id = f.backfill_id
            and b.status = 'pending' and b.not_before <= clock_timestamp()
        order by b.partition_index desc limit %(most)s)
    ) d
) n
where f.tenant_id = %(tenant_id)s and f.backfill_id = any(%(backfill_ids)s::uuid[])
    and (f.room is null or n.turn <= f.room)
order by f.running + n.turn, f.dispatched_at, f.backfill_id
limit %(most)s;

-- name: batch_start
-- Hand batches of tenant_id out, each under a lease of its own.
update batches b set status = 'running', attempts = b.attempts + 1, fencing_token = s.fencing_token, lease_id = s.lease_id,
    lease_expires_at = s.expires_at, error = null
from unnest(%(batch_ids)s::uuid[], %(fencing_tokens)s::bigint[], %(lease_ids)s::uuid[], %(ends)s::timestamptz[])
    as s(batch_id, fencing_token, lease_id, expires_at)
where b.tenant_id = %(tenant_id)s and b.batch_id = s.batch_id and b.batch_id = any(%(batch_ids)s::uuid[])
returning b.batch_id, b.window_start, b.window_end, b.attempts, b.checkpoint;

-- name: attempt_add
-- Begin attempts at batches of tenant_id.
insert into batch_attempts (tenant_id, batch_id, backfill_id, fencing_token, client_id, state, started_at)
select %(tenant_id)s, a.batch_id, a.backfill_id, a.fencing_token, %(client_id)s, 'live', %(now)s
from unnest(%(batch_ids)s::uuid[], %(backfill_ids)s::uuid[], %(fencing_tokens)s::bigint[])
    as a(batch_id, backfill_id, fencing_token);

-- name: batch_job_types
-- The job types of batches of tenant_id.
select distinct job_type from batches where tenant_id = %(tenant_id)s and batch_id = any(%(batch_ids)s::uuid[]);

-- name: batch_held
-- Batches of tenant_id with the attempts that some fencing tokens name, and whether the admission they run under lives.
-- One by one: each is a row by its key, whatever the planner thinks of the tables.
select b.*, l.lives is true as is_admitted, s.fencing_token as told_token, a.state as told_state, f.lease_seconds,
    f.status = 'canceling' as cancel_requested
from unnest(%(batch_ids)s::uuid[], %(tokens)s::numeric[]) as s(batch_id, fencing_token)
cross join lateral (select * from batches where tenant_id = %(tenant_id)s and batch_id = s.batch_id limit 1) b
cross join lateral (
    select lease_seconds, status from backfills where tenant_id = %(tenant_id)s and backfill_id = b.backfill_id limit 1
) f
left join lateral (
    select ended_at is null as lives from leases where tenant_id = %(tenant_id)s and lease_id = b.lease_id limit 1
) l on true
left join lateral (
    select state from batch_attempts
    where tenant_id = %(tenant_id)s and batch_id = s.batch_id and fencing_token = s.fencing_token limit 1
) a on true;

-- name: batch_leases_end
-- End the live leases that batches of tenant_id ran under; the caller takes them out of the sums under the same lock.
update leases l set ended_at = %(now)s, ending = e.ending
from unnest(%(lease_ids)s::uuid[], %(endings)s::text[]) as e(lease_id, ending)
where l.tenant_id = %(tenant_id)s and l.lease_id = e.lease_id and l.lease_id = any(%(lease_ids)s::uuid[])
    and coalesce(l.ended_at, 'infinity') = 'infinity'
returning l.lease_id, l.job_id, l.job_type, l.slots, l.kind, l.fencing_token, l.expires_at;

-- name: attempt_end
-- End live attempts at batches of tenant_id; their claims are final with 'completed' and free again with 'lost'.
update batch_attempts a set state = e.state, ended_at = %(now)s
from unnest(%(batch_ids)s::uuid[], %(fencing_tokens)s::bigint[], %(states)s::text[]) as e(batch_id, fencing_token, state)
where a.tenant_id = %(tenant_id)s and a.batch_id = e.batch_id and a.fencing_token = e.fencing_token and a.state = 'live'
    and a.batch_id = any(%(batch_ids)s::uuid[]);

-- name: batch_end
-- End the runs of batches of tenant_id: for good, or back to waiting until not_before.
update batches b set status = e.status, not_before = e.not_before, attempts = e.attempts, error = e.error, lease_id = null,
    lease_expires_at = null, events_processed = e.processed, events_duplicates = e.duplicates, events_failed = e.failed,
    finished_at = case when e.status <> 'pending' then %(now)s::timestamptz end
from unnest(%(batch_ids)s::uuid[], %(statuses)s::text[], %(not_before)s::timestamptz[], %(attempts)s::integer[],
    %(errors)s::text[], %(events_processed)s::bigint[], %(events_duplicates)s::bigint[], %(events_failed)s::bigint[])
    as e(batch_id, status, not_before, attempts, error, processed, duplicates, failed)
where b.tenant_id = %(tenant_id)s and b.batch_id = e.batch_id and b.batch_id = any(%(batch_ids)s::uuid[]);

-- name: system_find_batch_work
-- Tenants with a batch that is due for one of these handlers, or with a running batch that is overdue. Only backfills at
-- work are looked at, and of their batches only one that is due and those that run.
select tenant_id, bool_or(due) as due, bool_or(overdue) as overdue
from (
    select tenant_id, true as due, false as overdue from eligible_backfills
    where handler_kind = 'embedded' and job_type = any(%(job_types)s)
    union all
    select b.tenant_id, false, true from batches b
    join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
    left join leases l on l.tenant_id = b.tenant_id and l.lease_id = b.lease_id
    where b.status = 'running'
        and (b.lease_expires_at <= clock_timestamp() or l.lease_id is null or l.ended_at is not null
            or f.status = 'canceling' and f.cancel_requested_at <= clock_timestamp() - interval '10 seconds')
) as work
group by tenant_id;
