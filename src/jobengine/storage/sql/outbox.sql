-- name: system_take_relay
-- Send wake-ups for the next 5 s; no row while another server does.
update relay_turn set owner = %(owner)s, lease_until = clock_timestamp() + interval '5 seconds'
where owner = %(owner)s or lease_until < clock_timestamp()
returning owner;

-- name: system_leave_relay
-- Let another server send.
update relay_turn set owner = null, lease_until = '-infinity' where owner = %(owner)s;

-- name: system_forget_wakeups
-- Forget wake-ups of batches that wait no longer: claimed, canceled, paused.
delete from batch_wakeups w
where not exists (
    select from batches b join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
    where b.tenant_id = w.tenant_id and b.batch_id = w.batch_id and b.status = 'pending'
        and f.status in ('pending', 'running'));

-- name: system_due_wakeups
-- Batches whose workers are to be woken, up to the room of each job type: the tenants in turn, first what was never sent,
-- then what was sent a while ago and is still due, for a wake-up may be lost or have come when a quota was full. A hint
-- only: whether a batch runs is decided where it is claimed.
with due as (
    select f.tenant_id, f.job_type, f.backfill_id, n.batch_id, n.sent_at, w.room,
        row_number() over (
            partition by f.tenant_id, f.job_type order by n.sent_at nulls first, f.dispatched_at, n.batch_id) as turn
    from unnest(%(job_types)s::text[], %(rooms)s::bigint[]) as w(job_type, room)
    join backfills f on f.job_type = w.job_type
    cross join lateral (
        select count(*) as running from batches r
        where r.tenant_id = f.tenant_id and r.backfill_id = f.backfill_id and r.status = 'running'
    ) o
    cross join lateral (
        select b.batch_id, s.sent_at from batches b
        left join batch_wakeups s on s.tenant_id = b.tenant_id and s.batch_id = b.batch_id
        where b.tenant_id = f.tenant_id and b.backfill_id = f.backfill_id and b.status = 'pending'
            and b.not_before <= clock_timestamp()
            and (s.sent_at is null or s.sent_at <= clock_timestamp() - interval '2 seconds')
        order by s.sent_at nulls first, b.batch_id
        limit greatest(0, least(w.room, f.max_active - o.running))
    ) n
    where f.status in ('pending', 'running') and f.handler_kind = 'external'
), placed as (
    select *, row_number() over (partition by job_type order by turn, sent_at nulls first, tenant_id, batch_id) as place
    from due
)
select tenant_id, job_type, backfill_id, batch_id from placed where place <= room order by place;

-- name: system_mark_wakeups
-- Remember that these wake-ups were sent now.
insert into batch_wakeups (tenant_id, batch_id)
select * from unnest(%(tenant_ids)s::text[], %(batch_ids)s::uuid[])
on conflict (tenant_id, batch_id) do update set sent_at = excluded.sent_at;
