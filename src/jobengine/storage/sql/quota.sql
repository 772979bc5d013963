-- name: quota_lock
-- The quota of tenant_id, locked until the transaction ends.
select quota_id, tenant_id, job_type, max_active, max_per_hour, burst, refill_per_second, paused, pause_reason, version,
    created_at, updated_at, updated_by, last_action, last_entry_id, drain_after
from quotas where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s and deleted_at is null
for update;

-- name: quota_find_by_job_type
-- The quota of tenant_id for one job type; null asks for the tenant-wide one.
select quota_id from quotas
where tenant_id = %(tenant_id)s and job_type is not distinct from %(job_type)s::text and deleted_at is null;

-- name: quota_deleted_limits
-- The last limits of the newest quota of tenant_id for this job type that was deleted since then.
select max_active, max_per_hour, burst, refill_per_second from quotas
where tenant_id = %(tenant_id)s and job_type is not distinct from %(job_type)s::text and deleted_at > %(since)s
order by deleted_at desc limit 1;

-- name: quota_add
-- Store a new quota of tenant_id; no row back means that one for this job type came first.
insert into quotas (tenant_id, quota_id, job_type, max_active, max_per_hour, burst, refill_per_second, version,
    created_at, updated_at, updated_by, last_action, last_entry_id)
values (%(tenant_id)s, %(quota_id)s, %(job_type)s, %(max_active)s, %(max_per_hour)s, %(burst)s, %(refill_per_second)s,
    %(version)s, %(created_at)s, %(updated_at)s, %(updated_by)s, %(last_action)s, %(last_entry_id)s)
on conflict (tenant_id, job_type) where deleted_at is null do nothing
returning quota_id;

-- name: quota_save
-- Store the new state of a locked quota of tenant_id.
update quotas set max_active = %(max_active)s, max_per_hour = %(max_per_hour)s, burst = %(burst)s,
    refill_per_second = %(refill_per_second)s, paused = %(paused)s, pause_reason = %(pause_reason)s,
    version = %(version)s, updated_at = %(updated_at)s, updated_by = %(updated_by)s, last_action = %(last_action)s,
    last_entry_id = %(last_entry_id)s, drain_after = %(drain_after)s
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s;

-- name: quota_delete
-- Take a locked quota of tenant_id out of force; the row stays for its history.
update quotas set deleted_at = %(updated_at)s, version = %(version)s, updated_at = %(updated_at)s,
    updated_by = %(updated_by)s, last_action = %(last_action)s, last_entry_id = %(last_entry_id)s
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s;

-- name: quota_remember
-- Add one change to the history of a quota of tenant_id.
insert into quota_history (tenant_id, quota_id, version, at, action, before, after, changed_by, entry_id)
values (%(tenant_id)s, %(quota_id)s, %(version)s, %(at)s, %(action)s, %(before)s, %(after)s, %(changed_by)s, %(entry_id)s);

-- name: quota_history
-- The changes of a quota of tenant_id, oldest first, after a version; reason and ticket from the one place that has them.
select h.version, h.at, h.action, h.before, h.after, h.changed_by, h.entry_id, r.text as reason, t.text as ticket
from quota_history h
left join audit_texts r on r.tenant_id = h.tenant_id and r.entry_id = h.entry_id and r.field = 'reason'
left join audit_texts t on t.tenant_id = h.tenant_id and t.entry_id = h.entry_id and t.field = 'ticket'
where h.tenant_id = %(tenant_id)s and h.quota_id = %(quota_id)s and h.version > %(after)s
order by h.version limit %(most)s;

-- name: quota_as_of
-- The state of a quota of tenant_id as its last change up to a moment left it.
select after, version, at from quota_history
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s and at <= %(at)s
order by version desc limit 1;

-- name: quota_list
-- Quotas of tenant_id in order of their making, after a cursor, with the words of the last change.
select q.quota_id, q.tenant_id, q.job_type, q.max_active, q.max_per_hour, q.burst, q.refill_per_second, q.paused,
    q.pause_reason, q.version, q.created_at, q.updated_at, q.updated_by, q.last_action, q.last_entry_id, q.drain_after,
    r.text as reason, t.text as ticket
from quotas q
left join audit_texts r on r.tenant_id = q.tenant_id and r.entry_id = q.last_entry_id and r.field = 'reason'
left join audit_texts t on t.tenant_id = q.tenant_id and t.entry_id = q.last_entry_id and t.field = 'ticket'
where q.tenant_id = %(tenant_id)s and q.deleted_at is null
    and (%(quota_id)s::uuid is null or q.quota_id = %(quota_id)s)
    and (%(job_type)s::text is null or q.job_type = %(job_type)s)
    and (%(paused)s::boolean is null or q.paused = %(paused)s)
    and (%(after)s::uuid is null or q.quota_id > %(after)s)
order by q.quota_id limit %(most)s;

-- name: overrides_in_force
-- Overrides of these quotas of tenant_id that hold at a moment.
select override_id, quota_id, limits, starts_at, until, created_at, created_by, entry_id from quota_overrides
where tenant_id = %(tenant_id)s and quota_id = any(%(quota_ids)s::uuid[]) and removed_at is null
    and starts_at <= %(now)s and %(now)s < until;

-- name: override_list
-- Overrides of a quota of tenant_id that were neither removed nor are over, oldest first, after a cursor.
select override_id, quota_id, limits, starts_at, until, created_at, created_by, entry_id from quota_overrides
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s and removed_at is null and until > clock_timestamp()
    and (%(after)s::uuid is null or override_id > %(after)s)
order by override_id limit %(most)s;

-- name: override_add
-- Store an override of tenant_id.
insert into quota_overrides (tenant_id, override_id, quota_id, limits, starts_at, until, created_at, created_by, entry_id)
values (%(tenant_id)s, %(override_id)s, %(quota_id)s, %(limits)s, %(starts_at)s, %(until)s, %(created_at)s,
    %(created_by)s, %(entry_id)s);

-- name: override_remove
-- End an override of tenant_id now; no row means that there is none.
update quota_overrides set removed_at = clock_timestamp()
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s and override_id = %(override_id)s and removed_at is null
    and until > clock_timestamp()
returning override_id, quota_id, limits, starts_at, until, created_at, created_by, entry_id;

-- name: overrides_as_of
-- Overrides of a quota of tenant_id that held at a moment of the past.
select limits from quota_overrides
where tenant_id = %(tenant_id)s and quota_id = %(quota_id)s and created_at <= %(at)s
    and (removed_at is null or removed_at > %(at)s) and starts_at <= %(at)s and %(at)s < until;
