-- name: admission_lock
-- Take the tenant's lock: whoever adds or removes a lease of tenant_id holds this row. No row: nothing was ever admitted.
select account from admission_accounts where tenant_id = %(tenant_id)s and account = '' for update;

-- name: admission_start
-- The tenant's first admission makes its lock row; a concurrent first one waits here. tenant_id has one such row.
insert into admission_accounts (tenant_id, account) values (%(tenant_id)s, '') on conflict do nothing;

-- name: admission_now
-- The decision's time for tenant_id: the database's clock after the lock, and never before the last decision's.
select greatest(clock_timestamp(), decided_at) as now from admission_accounts
where tenant_id = %(tenant_id)s and account = '';

-- name: admission_expire
-- End the leases of tenant_id that nobody renewed in time; the caller takes them out of the sums under the same lock.
update leases set ended_at = %(now)s, ending = 'expired'
where tenant_id = %(tenant_id)s and ended_at is null and expires_at <= %(now)s
returning job_type, slots, kind;

-- name: admission_forget_hour
-- Drop the admissions of tenant_id that have left the rolling hour; the caller takes them out of granted_hour.
delete from admission_grants
where tenant_id = %(tenant_id)s and account = any(%(accounts)s) and at <= %(now)s::timestamptz - interval '1 hour'
returning account, granted;

-- name: admission_accounts
-- The accounts of tenant_id as they were left by the last decision.
select account, fencing, active, active_backfill, granted_hour, bucket_pico, bucket_at from admission_accounts
where tenant_id = %(tenant_id)s and account = any(%(accounts)s);

-- name: admission_limits
-- The quotas of tenant_id that a decision about these accounts asks; '' is the tenant as a whole.
select coalesce(job_type, '') as account, quota_id, max_active, max_per_hour, burst, refill_per_second, paused
from quotas
where tenant_id = %(tenant_id)s and deleted_at is null and coalesce(job_type, '') = any(%(accounts)s);

-- name: admission_overrides
-- Overrides in force at this time on the quotas of tenant_id that a decision about these accounts asks.
select o.override_id, o.quota_id, o.limits, o.starts_at, o.until, o.created_at, o.created_by, o.entry_id
from quota_overrides o join quotas q on q.tenant_id = o.tenant_id and q.quota_id = o.quota_id
where o.tenant_id = %(tenant_id)s and q.deleted_at is null and coalesce(q.job_type, '') = any(%(accounts)s)
    and o.removed_at is null and o.starts_at <= %(now)s and %(now)s < o.until;

-- name: admission_waiting
-- Job types of tenant_id with a batch that could run now, and whether one of theirs, or of the tenant's at all, runs.
select b.job_type, exists (
    select from batches r
    where r.tenant_id = %(tenant_id)s and r.job_type = b.job_type and r.status = 'running' and r.lease_expires_at > %(now)s
) as one_runs, exists (
    select from batches r where r.tenant_id = %(tenant_id)s and r.status = 'running' and r.lease_expires_at > %(now)s
) as any_runs
from batches b
join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
where b.tenant_id = %(tenant_id)s and f.status in ('pending', 'running')
    and (b.status = 'pending' and b.not_before <= %(now)s or b.status = 'running' and b.lease_expires_at <= %(now)s)
group by b.job_type;

-- name: admission_same_job
-- Live leases of tenant_id that were asked for under these job ids.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds from leases
where tenant_id = %(tenant_id)s and ended_at is null and job_id = any(%(job_ids)s);

-- name: admission_add_leases
-- Write down the granted leases of tenant_id.
insert into leases (tenant_id, lease_id, job_type, quota_id, kind, slots, job_id, fencing_token, lease_seconds,
    granted_at, expires_at, client_id)
select %(tenant_id)s, l.lease_id, l.job_type, l.quota_id, l.kind, l.slots, l.job_id, l.fencing_token, l.lease_seconds,
    %(granted_at)s, l.expires_at, l.client_id
from unnest(%(lease_id)s::uuid[], %(job_type)s::text[], %(quota_id)s::uuid[], %(kind)s::text[], %(slots)s::bigint[],
    %(job_id)s::text[], %(fencing_token)s::bigint[], %(lease_seconds)s::integer[], %(expires_at)s::timestamptz[],
    %(client_id)s::text[])
    as l(lease_id, job_type, quota_id, kind, slots, job_id, fencing_token, lease_seconds, expires_at, client_id);

-- name: admission_save_account
-- Keep what a decision left of one account of tenant_id.
insert into admission_accounts as kept (tenant_id, account, fencing, active, active_backfill, granted_hour,
    bucket_pico, bucket_at, decided_at)
values (%(tenant_id)s, %(account)s, %(fencing)s, %(active)s, %(active_backfill)s, %(granted_hour)s, %(bucket_pico)s,
    %(bucket_at)s, %(now)s)
on conflict (tenant_id, account) do update set
    fencing = excluded.fencing, active = excluded.active, active_backfill = excluded.active_backfill,
    granted_hour = excluded.granted_hour, bucket_pico = excluded.bucket_pico, bucket_at = excluded.bucket_at,
    decided_at = excluded.decided_at;

-- name: admission_add_grants
-- Count admissions of tenant_id into the rolling hour.
insert into admission_grants as kept (tenant_id, account, at, granted)
values (%(tenant_id)s, %(account)s, %(now)s, %(granted)s)
on conflict (tenant_id, account, at) do update set granted = kept.granted + excluded.granted;

-- name: admission_count_denials
-- Count denials of tenant_id by limit and minute, for the summary.
insert into admission_denials as kept (tenant_id, job_type, limit_name, minute, denied)
values (%(tenant_id)s, %(job_type)s, %(limit_name)s, date_trunc('minute', %(now)s::timestamptz), %(denied)s)
on conflict (tenant_id, job_type, limit_name, minute) do update set denied = kept.denied + excluded.denied;

-- name: admission_holdings
-- Live leases of one account of tenant_id by expiry, as far as the wait needs them; null is any kind.
select lease_id, expires_at, slots from leases
where tenant_id = %(tenant_id)s and ended_at is null and expires_at > %(now)s
    and %(account)s::text in ('', job_type) and (%(kind)s::text is null or kind = %(kind)s)
order by expires_at
limit %(most)s;

-- name: admission_hour
-- The rolling hour of one account of tenant_id, oldest first, as far as the wait needs it.
select at, granted from admission_grants
where tenant_id = %(tenant_id)s and account = %(account)s
order by at
limit %(most)s;

-- name: lease_get
-- One lease of tenant_id, live or ended within the hour.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds, ended_at, ending
from leases where tenant_id = %(tenant_id)s and lease_id = %(lease_id)s;

-- name: lease_get_many
-- Leases of tenant_id, live or ended within the hour.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds, ended_at, ending
from leases where tenant_id = %(tenant_id)s and lease_id = any(%(lease_ids)s::uuid[]);

-- name: lease_extend_many
-- Move the ends of live leases of tenant_id.
update leases l set expires_at = m.expires_at, lease_seconds = m.lease_seconds
from unnest(%(lease_ids)s::uuid[], %(ends)s::timestamptz[], %(seconds)s::integer[]) as m(lease_id, expires_at, lease_seconds)
where l.tenant_id = %(tenant_id)s and l.lease_id = m.lease_id and l.ended_at is null;

-- name: lease_end_many
-- End live leases of tenant_id that were given back; the caller takes them out of the sums under the same lock.
update leases set ended_at = %(now)s, ending = 'released'
where tenant_id = %(tenant_id)s and lease_id = any(%(lease_ids)s::uuid[]) and ended_at is null;

-- name: lease_extend
-- Move the end of a live lease of tenant_id.
update leases set expires_at = %(expires_at)s, lease_seconds = %(lease_seconds)s
where tenant_id = %(tenant_id)s and lease_id = %(lease_id)s and ended_at is null
returning lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds;

-- name: lease_end
-- End a live lease of tenant_id; the caller takes it out of the sums under the same lock.
update leases set ended_at = %(now)s, ending = %(ending)s
where tenant_id = %(tenant_id)s and lease_id = %(lease_id)s and ended_at is null
returning job_type, slots, kind;

-- name: lease_list
-- Live leases of tenant_id, oldest first, after a cursor.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds from leases
where tenant_id = %(tenant_id)s and ended_at is null and expires_at > clock_timestamp()
    and (%(job_type)s::text is null or job_type = %(job_type)s)
    and (%(after)s::uuid is null or lease_id > %(after)s)
order by lease_id
limit %(most)s;

-- name: usage
-- What accounts of tenant_id use at a moment, recomputed from the leases and the hour; one row an account. The rollup's
-- row without a job type is the tenant as a whole.
with live as (
    select coalesce(job_type, '') as account, sum(slots) as active, sum(slots) filter (where kind = 'backfill') as backfill
    from leases
    where tenant_id = %(tenant_id)s and ended_at is null and expires_at > %(now)s
    group by rollup (job_type)
), hour as (
    select account, sum(granted) as granted from admission_grants
    where tenant_id = %(tenant_id)s and account = any(%(accounts)s) and at > %(now)s::timestamptz - interval '1 hour'
    group by account
)
select a.account, coalesce(l.active, 0)::bigint as active, coalesce(l.backfill, 0)::bigint as active_backfill,
    coalesce(h.granted, 0)::bigint as granted_hour,
    k.bucket_pico, k.bucket_at, k.active as kept_active, k.active_backfill as kept_backfill, k.granted_hour as kept_hour
from unnest(%(accounts)s::text[]) as a(account)
left join live l on l.account = a.account
left join hour h on h.account = a.account
left join admission_accounts k on k.tenant_id = %(tenant_id)s and k.account = a.account;

-- name: account_names
-- Every account that tenant_id ever used.
select account from admission_accounts where tenant_id = %(tenant_id)s order by account;

-- name: denials_last_hour
-- Denials of tenant_id in the last hour by job type and limit.
select job_type, limit_name, sum(denied)::bigint as denied from admission_denials
where tenant_id = %(tenant_id)s and minute > clock_timestamp() - interval '1 hour'
group by job_type, limit_name;
