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

-- name: event_look
-- Which of these event keys of tenant_id were claimed before, by the claims that took them last. Digests go in and come
-- out as one string, 16 bytes each: taking ten thousand of them apart costs more than finding them.
select attempt_id, call_no, was_final, string_agg(event, ''::bytea) as events from event_keys
where tenant_id = %(tenant_id)s and scope = %(scope)s and event = any(array(
    select substring(%(events)s::bytea from at for 16) from generate_series(1, length(%(events)s::bytea), 16) as at))
group by attempt_id, call_no, was_final;

-- name: event_insert
-- Claim the event keys of tenant_id that nobody ever claimed, in the order of their digests so that two claims never
-- wait for each other; returns those that were new, and null instead of all of them.
with claimed as (
    insert into event_keys (tenant_id, scope, event, attempt_id, call_no)
    select %(tenant_id)s, %(scope)s, substring(%(events)s::bytea from at for 16), %(attempt_id)s, %(call_no)s
    from generate_series(1, length(%(events)s::bytea), 16) as at
    on conflict do nothing
    returning event
)
select case when 16 * count(*) < length(%(events)s::bytea) then coalesce(string_agg(event, ''::bytea), ''::bytea) end as events
from claimed;

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

-- name: system_old_attempts
-- Some of the attempts that ended before a moment, the oldest first.
select attempt_id from batch_attempts where ended_at < %(before)s order by ended_at limit %(most)s;

-- name: system_prune_event_keys
-- Forget the event keys that these attempts claimed last.
delete from event_keys where attempt_id = any(%(attempt_ids)s::bigint[]);

-- name: system_prune_attempts
-- Forget attempts that no event key stands for any more.
delete from batch_attempts where attempt_id = any(%(attempt_ids)s::bigint[]);

-- name: system_prune_event_calls
-- Forget the calls of attempts that have ended: they can be made no more.
delete from event_calls c using batch_attempts a
where a.tenant_id = c.tenant_id and a.attempt_id = c.attempt_id and a.state <> 'live';
