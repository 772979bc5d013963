-- name: allocation_shares
-- The parts of tenant_id in the pools of these job types; a pool's rows are the platform's.
select job_type, capacity, strategy, weight, priority, reserved, max_limit from allocation_members
where tenant_id = '_platform' and member = %(tenant_id)s and job_type = any(%(job_types)s);

-- name: allocation_lock
-- The pool of one job type, locked; tenant_id is the platform.
select job_type, capacity, strategy, status, version, created_at, updated_at, updated_by, entry_id, epoch, plan_token,
    started_at, started_by, apply_entry_id, ended_at, stopped_by
from allocations where tenant_id = %(tenant_id)s and job_type = %(job_type)s
for update;

-- name: allocation_list
-- Pools by job type, after a cursor; tenant_id is the platform.
select job_type, capacity, strategy, status, version, created_at, updated_at, updated_by, entry_id, epoch, plan_token,
    started_at, started_by, apply_entry_id, ended_at, stopped_by
from allocations
where tenant_id = %(tenant_id)s and (%(job_type)s::text is null or job_type = %(job_type)s)
    and (%(after)s::text is null or job_type > %(after)s)
order by job_type limit %(most)s;

-- name: allocation_members
-- Who shares these pools; tenant_id is the platform.
select job_type, member, weight, priority, reserved, max_limit, demand from allocation_members
where tenant_id = %(tenant_id)s and job_type = any(%(job_types)s) order by job_type, member;

-- name: allocation_progress
-- How many tenants of these pools have what the last apply gives them; tenant_id is the platform.
select job_type, count(*) as total, count(*) filter (where stage = 2 or stage = 1 and to_active <= from_active) as done
from allocation_steps where tenant_id = %(tenant_id)s and job_type = any(%(job_types)s) group by job_type;

-- name: allocation_save
-- Store a pool in the place of the one before it; tenant_id is the platform.
insert into allocations (tenant_id, job_type, capacity, strategy, status, version, created_at, updated_at, updated_by,
    entry_id)
values (%(tenant_id)s, %(job_type)s, %(capacity)s, %(strategy)s, %(status)s, %(version)s, %(created_at)s, %(updated_at)s,
    %(updated_by)s, %(entry_id)s)
on conflict (tenant_id, job_type) do update set capacity = excluded.capacity, strategy = excluded.strategy,
    status = excluded.status, version = excluded.version, updated_at = excluded.updated_at,
    updated_by = excluded.updated_by, entry_id = excluded.entry_id;

-- name: allocation_drop_members
-- Nobody shares the pool any more; tenant_id is the platform.
delete from allocation_members where tenant_id = %(tenant_id)s and job_type = %(job_type)s;

-- name: allocation_add_members
-- Who shares the pool; tenant_id is the platform.
insert into allocation_members (tenant_id, job_type, member, weight, priority, reserved, max_limit, demand, capacity,
    strategy)
select %(tenant_id)s, %(job_type)s, m.member, m.weight, m.priority, m.reserved, m.max_limit, m.demand, %(capacity)s,
    %(strategy)s
from unnest(%(member)s::text[], %(weight)s::bigint[], %(priority)s::bigint[], %(reserved)s::bigint[],
    %(max_limit)s::bigint[], %(demand)s::bigint[]) as m(member, weight, priority, reserved, max_limit, demand);

-- name: allocation_delete
-- Take a pool away, with its members and steps; tenant_id is the platform.
delete from allocations where tenant_id = %(tenant_id)s and job_type = %(job_type)s;

-- name: allocation_start
-- From the commit on, the pool is being applied under a new epoch; tenant_id is the platform.
update allocations set status = 'applying', epoch = nextval('allocation_epochs'), plan_token = %(plan_token)s,
    started_at = %(started_at)s, started_by = %(started_by)s, client_id = %(client_id)s, token_id = %(token_id)s,
    trace_id = %(trace_id)s, apply_entry_id = %(entry_id)s, ended_at = null, stopped_by = null, worker = null,
    worked_until = '-infinity'
where tenant_id = %(tenant_id)s and job_type = %(job_type)s
returning epoch;

-- name: allocation_drop_steps
-- Forget the steps of the apply before; tenant_id is the platform.
delete from allocation_steps where tenant_id = %(tenant_id)s and job_type = %(job_type)s;

-- name: allocation_add_steps
-- What is to be done in each tenant; tenant_id is the platform.
insert into allocation_steps (tenant_id, job_type, member, epoch, quota_id, from_active, to_active)
select %(tenant_id)s, %(job_type)s, s.member, %(epoch)s, s.quota_id, s.from_active, s.to_active
from unnest(%(member)s::text[], %(quota_id)s::uuid[], %(from_active)s::bigint[], %(to_active)s::bigint[])
    as s(member, quota_id, from_active, to_active);

-- name: allocation_claim
-- Take one pool that is being applied and that nobody works on; the claim is mine again, or free when it runs out. What
-- it is taken for is safe in several hands: this only saves work. tenant_id is the platform.
update allocations set worker = %(worker)s, worked_until = clock_timestamp() + make_interval(secs => %(seconds)s)
where tenant_id = %(tenant_id)s and job_type = (
    select job_type from allocations
    where tenant_id = %(tenant_id)s and status = 'applying'
        and (worker = %(worker)s or worked_until < clock_timestamp())
    order by job_type limit 1 for update skip locked
)
returning job_type, epoch, started_at, started_by, client_id, token_id, trace_id, apply_entry_id;

-- name: allocation_words
-- Why an apply was asked for, from the one place that has it; tenant_id is the platform.
select field, text from audit_texts
where tenant_id = %(tenant_id)s and entry_id = %(entry_id)s and field in ('reason', 'ticket');

-- name: allocation_open_steps
-- The next steps of one stage under this epoch, the largest cuts first; tenant_id is the platform.
select member, quota_id, from_active, to_active from allocation_steps
where tenant_id = %(tenant_id)s and job_type = %(job_type)s and epoch = %(epoch)s and stage < %(stage)s
    and (%(stage)s = 1 or to_active > from_active)
order by to_active - from_active, member limit %(most)s;

-- name: allocation_close_steps
-- These tenants have come through a stage; tenant_id is the platform.
update allocation_steps set stage = %(stage)s
where tenant_id = %(tenant_id)s and job_type = %(job_type)s and epoch = %(epoch)s and member = any(%(members)s)
    and stage < %(stage)s;

-- name: allocation_renew
-- Go on working on the pool; tenant_id is the platform.
update allocations set worked_until = clock_timestamp() + make_interval(secs => %(seconds)s)
where tenant_id = %(tenant_id)s and job_type = %(job_type)s and epoch = %(epoch)s and worker = %(worker)s;

-- name: allocation_end
-- The apply under this epoch is over; no row means that somebody has said so before. tenant_id is the platform.
update allocations set status = %(status)s, ended_at = clock_timestamp(), stopped_by = %(stopped_by)s
where tenant_id = %(tenant_id)s and job_type = %(job_type)s and epoch = %(epoch)s and status = 'applying'
returning job_type;

-- name: allocation_mark_start
-- Make the row that steps of tenant_id lock, older than any apply.
insert into allocation_marks (tenant_id, job_type, epoch, stage) values (%(tenant_id)s, %(job_type)s, 0, 1)
on conflict do nothing;

-- name: allocation_mark_lock
-- How far which apply has come in tenant_id, locked.
select epoch, stage from allocation_marks where tenant_id = %(tenant_id)s and job_type = %(job_type)s for update;

-- name: allocation_mark_set
-- This stage is done in tenant_id, if its transaction commits.
update allocation_marks set epoch = %(epoch)s, stage = %(stage)s
where tenant_id = %(tenant_id)s and job_type = %(job_type)s;

-- name: system_read_standings
-- What these tenants have of one job type now, whether or not they exist; nothing is locked.
select m.tenant_id, t.tenant_id is not null as known, q.quota_id, q.max_active, q.version, (
    select coalesce(sum(l.slots), 0)::bigint from leases l
    where l.tenant_id = m.tenant_id and l.job_type = %(job_type)s and l.ended_at is null
        and l.expires_at > clock_timestamp()
) as active, exists (
    select from quota_overrides o
    where o.tenant_id = q.tenant_id and o.quota_id = q.quota_id and o.removed_at is null
        and o.until > clock_timestamp() and jsonb_exists(o.limits, 'max_active')
) as overridden
from unnest(%(tenants)s::text[]) as m(tenant_id)
left join tenants t on t.tenant_id = m.tenant_id
left join quotas q on q.tenant_id = m.tenant_id and q.job_type = %(job_type)s and q.deleted_at is null;

-- name: system_find_expired_changes
-- Changes that nobody decided on in time and that do not say so yet, the oldest first.
select tenant_id, change_id from quota_changes
where status = 'pending' and expires_at <= clock_timestamp() order by expires_at limit %(most)s;

-- name: change_add
-- Store a change of tenant_id.
insert into quota_changes (tenant_id, change_id, kind, origin, status, quota_id, job_type, before, wanted, starts_at,
    until, requested_by, client_id, requested_at, expires_at, entry_id, decided_by, decided_at, decision_entry_id)
values (%(tenant_id)s, %(change_id)s, %(kind)s, %(origin)s, %(status)s, %(quota_id)s, %(job_type)s, %(before)s,
    %(wanted)s, %(starts_at)s, %(until)s, %(requested_by)s, %(client_id)s, %(requested_at)s, %(expires_at)s, %(entry_id)s,
    %(decided_by)s, %(decided_at)s, %(decision_entry_id)s);

-- name: change_lock
-- A change of tenant_id, locked.
select change_id, kind, origin, status, quota_id, job_type, before, wanted, starts_at, until, requested_by, client_id,
    requested_at, expires_at, entry_id, decided_by, decided_at, decision_entry_id
from quota_changes where tenant_id = %(tenant_id)s and change_id = %(change_id)s
for update;

-- name: change_settle
-- Store what became of a locked change of tenant_id.
update quota_changes set status = %(status)s, decided_by = %(decided_by)s, decided_at = %(decided_at)s,
    decision_entry_id = %(decision_entry_id)s
where tenant_id = %(tenant_id)s and change_id = %(change_id)s;

-- name: change_count_waiting
-- How many changes of tenant_id wait at a moment.
select count(*) as waiting from quota_changes
where tenant_id = %(tenant_id)s and status = 'pending' and expires_at > %(now)s;

-- name: change_list
-- Changes of tenant_id, oldest first, after a cursor, as they are at a moment, with the words of both people.
select c.change_id, c.kind, c.origin, c.status, c.quota_id, c.job_type, c.before, c.wanted, c.starts_at, c.until,
    c.requested_by, c.client_id, c.requested_at, c.expires_at, c.entry_id, c.decided_by, c.decided_at,
    c.decision_entry_id, r.text as reason, t.text as ticket, n.text as comment
from quota_changes c
left join audit_texts r on r.tenant_id = c.tenant_id and r.entry_id = c.entry_id and r.field = 'reason'
left join audit_texts t on t.tenant_id = c.tenant_id and t.entry_id = c.entry_id and t.field = 'ticket'
left join audit_texts n on n.tenant_id = c.tenant_id and n.entry_id = c.decision_entry_id
    and n.field = 'properties.comment.reason'
where c.tenant_id = %(tenant_id)s
    and (%(change_id)s::uuid is null or c.change_id = %(change_id)s)
    and (%(origin)s::text is null or c.origin = %(origin)s)
    and (%(status)s::text is null or %(status)s = case
        when c.status = 'pending' and c.expires_at <= %(now)s then 'expired' else c.status end)
    and (%(after)s::uuid is null or c.change_id > %(after)s)
order by c.change_id limit %(most)s;
