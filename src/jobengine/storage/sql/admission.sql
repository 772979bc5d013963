-- name: admission_lock
-- Take the tenant's lock: whoever adds or removes a lease of tenant_id holds this row, and takes it before any other.
-- The decision's time is the database's clock once the lock is held, and never before the last decision's. No row:
-- nothing was ever admitted. What follows is planned once: an array of one or of a thousand takes the same way, and to plan
-- such a statement anew takes longer than to carry it out.
with held as materialized (
    select decided_at from admission_accounts where tenant_id = %(tenant_id)s and account = '' for update
)
select set_config('jobengine.decided_at', greatest(clock_timestamp(), decided_at)::text, true)::timestamptz as now,
    set_config('plan_cache_mode', 'force_generic_plan', true)
from held;

-- name: admission_start
-- The tenant's first admission makes its lock row; a concurrent first one waits here. tenant_id has one such row.
insert into admission_accounts (tenant_id, account) values (%(tenant_id)s, '') on conflict do nothing;

-- name: admission_look
-- Let what follows read accounts as of a moment, without the lock; tenant_id plays no part.
select set_config('jobengine.decided_at', (%(now)s::timestamptz)::text, true);

-- name: admission_let_go
-- End the leases of tenant_id that nobody renewed in time, and drop the admissions that have left the rolling hour; the
-- caller takes both out of the sums under the same lock. A row is a lease, or the admissions of an account.
-- The order leaves the planner one way, by leases_live: on a young table every index looks as good, a plan is kept, and
-- by the key it would read all live leases at each decision.
with ended as (
    update leases set ended_at = decided_at(), ending = 'expired'
    where tenant_id = %(tenant_id)s and lease_id = any(array(
        select due.lease_id from leases due
        where due.tenant_id = %(tenant_id)s and due.ended_at is null and due.expires_at <= decided_at()
        order by due.expires_at
    ))
    returning lease_id, job_type, slots, kind, fencing_token, expires_at
), gone as (
    delete from admission_grants
    where tenant_id = %(tenant_id)s and account = any(%(accounts)s) and at <= decided_at() - interval '1 hour'
    returning account, granted
)
select lease_id, job_type, slots, kind, fencing_token, expires_at, null::bigint as granted from ended
union all
select null, account, null, null, null, null, sum(granted)::bigint from gone group by account;

-- name: admission_accounts
-- What decisions about these accounts of tenant_id need, all in one answer: what the last one left, the quota if there is
-- one, whether limits changed since the bucket was last counted, and its overrides that are in force or were since then.
-- '' is the tenant as a whole, and carries the policy. A batch waits where one could run now and none does; of each job
-- type one eligible backfill is looked for and no further.
with waiting as materialized (
    select t.job_type, exists (
        select from batches r
        where r.tenant_id = %(tenant_id)s and r.job_type = t.job_type and r.status = 'running'
            and r.lease_expires_at > decided_at()
    ) as one_runs
    from (
        select distinct f.job_type from backfills f
        where f.tenant_id = %(tenant_id)s and f.status in ('pending', 'running')
    ) t
    where exists (select from eligible_backfills e where e.tenant_id = %(tenant_id)s and e.job_type = t.job_type)
        or exists (
            select from batches b join backfills f on f.tenant_id = b.tenant_id and f.backfill_id = b.backfill_id
            where b.tenant_id = %(tenant_id)s and b.job_type = t.job_type and b.status = 'running'
                and b.lease_expires_at <= decided_at() and f.status in ('pending', 'running'))
)
select a.account, k.fencing, k.active, k.active_backfill, k.granted_hour, k.bucket_pico, k.bucket_at,
    q.quota_id, q.max_active, q.max_per_hour, q.burst, q.refill_per_second, q.paused,
    coalesce(greatest(q.updated_at, case when q.quota_id is null then p.updated_at end, (
        select max(d.deleted_at) from quotas d
        where d.tenant_id = %(tenant_id)s and d.job_type = a.account and d.deleted_at is not null
    )) > k.bucket_at, false) as changed,
    (
        select jsonb_agg(jsonb_build_object(
            'override_id', o.override_id, 'quota_id', o.quota_id, 'limits', o.limits, 'starts_at', o.starts_at,
            'until', least(o.until, o.removed_at), 'created_at', o.created_at, 'created_by', o.created_by,
            'entry_id', o.entry_id))
        from quota_overrides o
        where o.tenant_id = %(tenant_id)s and o.quota_id = q.quota_id
            and o.starts_at <= decided_at() and least(o.until, o.removed_at) > o.starts_at
            and least(o.until, o.removed_at) > least(k.bucket_at, decided_at())
    ) as overrides,
    case when a.account = '' then exists (select from waiting) and not exists (
        select from batches r
        where r.tenant_id = %(tenant_id)s and r.status = 'running' and r.lease_expires_at > decided_at()
    ) else exists (select from waiting w where w.job_type = a.account and not w.one_runs) end as batch_waits,
    case when a.account = '' then p.document end as policy, p.version as policy_version
from unnest(%(accounts)s::text[]) as a(account)
cross join policy p
left join admission_accounts k on k.tenant_id = %(tenant_id)s and k.account = a.account
left join lateral (
    select * from quotas where tenant_id = %(tenant_id)s and job_type = a.account and deleted_at is null
    union all
    select * from quotas where tenant_id = %(tenant_id)s and job_type is null and a.account = '' and deleted_at is null
) q on true;

-- name: admission_changes
-- What the quotas of one account of tenant_id said before each change since its bucket was last counted, oldest first;
-- null is no quota.
select h.at, h.before from quota_history h
join quotas q on q.tenant_id = h.tenant_id and q.quota_id = h.quota_id
join admission_accounts k on k.tenant_id = h.tenant_id and k.account = coalesce(q.job_type, '')
where h.tenant_id = %(tenant_id)s and k.account = %(account)s and h.at > k.bucket_at
order by h.at, h.version;

-- name: admission_same_job
-- Live leases of tenant_id that were asked for under these job ids.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds from leases
where tenant_id = %(tenant_id)s and ended_at is null and job_id = any(%(job_ids)s);

-- name: admission_store
-- Keep what a group of decisions left of tenant_id, all at once: its accounts, its new leases, their admissions in the
-- rolling hour, and the record of what was asked, which is left out where nothing was.
with left_over as (
    insert into admission_accounts as kept (tenant_id, account, fencing, active, active_backfill, granted_hour,
        bucket_pico, bucket_at, decided_at)
    select %(tenant_id)s, a.*, %(now)s::timestamptz
    from unnest(%(account)s::text[], %(fencing)s::bigint[], %(active)s::bigint[], %(active_backfill)s::bigint[],
        %(granted_hour)s::bigint[], %(bucket_pico)s::numeric[], %(bucket_at)s::timestamptz[]) as a
    on conflict (tenant_id, account) do update set
        fencing = excluded.fencing, active = excluded.active, active_backfill = excluded.active_backfill,
        granted_hour = excluded.granted_hour, bucket_pico = excluded.bucket_pico, bucket_at = excluded.bucket_at,
        decided_at = excluded.decided_at
), granted as (
    insert into leases (tenant_id, lease_id, job_type, quota_id, kind, slots, job_id, fencing_token, lease_seconds,
        granted_at, expires_at, client_id)
    select %(tenant_id)s, l.lease_id, l.job_type, l.quota_id, l.kind, l.slots, l.job_id, l.fencing_token,
        l.lease_seconds, %(now)s::timestamptz, %(now)s::timestamptz + l.lease_seconds * interval '1 second', l.client_id
    from unnest(%(lease_id)s::uuid[], %(job_type)s::text[], %(quota_id)s::uuid[], %(kind)s::text[], %(slots)s::bigint[],
        %(job_id)s::text[], %(fencing_token)s::bigint[], %(lease_seconds)s::integer[], %(client_id)s::text[])
        as l(lease_id, job_type, quota_id, kind, slots, job_id, fencing_token, lease_seconds, client_id)
), hour as (
    insert into admission_grants as kept (tenant_id, account, at, granted)
    select %(tenant_id)s, g.account, %(now)s::timestamptz, g.granted
    from unnest(%(hour_account)s::text[], %(hour_granted)s::integer[]) as g(account, granted)
    on conflict (tenant_id, account, at) do update set granted = kept.granted + excluded.granted
)
insert into asks (tenant_id, day_slot, at, share, asked, accounts, limits, state, kinds, places, slots, seconds, tokens)
select %(tenant_id)s, %(day_slot)s::smallint, %(now)s::timestamptz, %(share)s::numeric, %(asked)s::integer,
    %(asked_accounts)s::text[], %(asked_limits)s::bigint[], %(asked_state)s::bigint[], %(asked_kinds)s::smallint[],
    %(asked_places)s::smallint[], %(asked_slots)s::bigint[], %(asked_seconds)s::integer[], %(asked_tokens)s::bigint[]
where %(asked)s::integer is not null;

-- name: admission_return_slots
-- Take ended leases out of the sums of accounts of tenant_id that nothing was asked of.
update admission_accounts k set active = k.active - r.active, active_backfill = k.active_backfill - r.active_backfill
from unnest(%(account)s::text[], %(active)s::bigint[], %(active_backfill)s::bigint[])
    as r(account, active, active_backfill)
where k.tenant_id = %(tenant_id)s and k.account = r.account;

-- name: admission_count_denials
-- Count denials of tenant_id by limit and minute, for the summary.
insert into admission_denials as kept (tenant_id, job_type, limit_name, minute, denied)
select %(tenant_id)s, d.job_type, d.limit_name, date_trunc('minute', %(now)s::timestamptz), d.denied
from unnest(%(job_type)s::text[], %(limit_name)s::text[], %(denied)s::bigint[]) as d(job_type, limit_name, denied)
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
-- Leases of tenant_id, live or ended within the hour; drained where a limit of theirs drains and is still exceeded.
with draining as materialized (
    select q.job_type from quotas q
    where q.tenant_id = %(tenant_id)s and q.deleted_at is null and q.drain_after <= clock_timestamp()
        and greatest(q.max_active, (
            select max((o.limits ->> 'max_active')::bigint) from quota_overrides o
            where o.tenant_id = %(tenant_id)s and o.quota_id = q.quota_id and o.removed_at is null
                and o.starts_at <= clock_timestamp() and clock_timestamp() < o.until
        )) < (
            select sum(h.slots) from leases h
            where h.tenant_id = %(tenant_id)s and h.ended_at is null and h.expires_at > clock_timestamp()
                and (q.job_type is null or h.job_type = q.job_type)
        )
)
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds, ended_at, ending,
    exists (select from draining d where d.job_type is null or d.job_type = leases.job_type) as drained
from leases where tenant_id = %(tenant_id)s and lease_id = any(%(lease_ids)s::uuid[]);

-- name: lease_extend_many
-- Move the ends of live leases of tenant_id. Not "is null": a plan made on a young table would read all live leases.
update leases l set expires_at = m.expires_at, lease_seconds = m.lease_seconds
from unnest(%(lease_ids)s::uuid[], %(ends)s::timestamptz[], %(seconds)s::integer[]) as m(lease_id, expires_at, lease_seconds)
where l.tenant_id = %(tenant_id)s and l.lease_id = m.lease_id and l.lease_id = any(%(lease_ids)s::uuid[])
    and coalesce(l.ended_at, 'infinity') = 'infinity'
returning l.lease_id;

-- name: lease_end_many
-- End live leases of tenant_id that were given back; the caller takes them out of the sums under the same lock.
-- Not "is null": a plan made on a young table would read all live leases.
update leases set ended_at = %(now)s, ending = 'released'
where tenant_id = %(tenant_id)s and lease_id = any(%(lease_ids)s::uuid[]) and coalesce(ended_at, 'infinity') = 'infinity'
returning lease_id;

-- name: lease_extend
-- Move the end of a live lease of tenant_id.
update leases set expires_at = %(expires_at)s, lease_seconds = %(lease_seconds)s
where tenant_id = %(tenant_id)s and lease_id = %(lease_id)s and ended_at is null
returning lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds;

-- name: lease_end
-- End a live lease of tenant_id; the caller takes it out of the sums under the same lock.
update leases set ended_at = %(now)s, ending = %(ending)s
where tenant_id = %(tenant_id)s and lease_id = %(lease_id)s and ended_at is null
returning job_type, slots, kind, fencing_token, expires_at;

-- name: lease_list
-- Live leases of tenant_id, oldest first, after a cursor.
select lease_id, quota_id, job_type, slots, kind, job_id, fencing_token, expires_at, lease_seconds from leases
where tenant_id = %(tenant_id)s and ended_at is null and expires_at > clock_timestamp()
    and (%(job_type)s::text is null or job_type = %(job_type)s)
    and (%(after)s::uuid is null or lease_id > %(after)s)
order by lease_id
limit %(most)s;

-- name: usage
-- What accounts of tenant_id use at a moment, recomputed from the leases alone, which are kept for an hour after their
-- end; one row an account. The rollup's row without a job type is the tenant as a whole.
with live as (
    select coalesce(job_type, '') as account, sum(slots) as active, sum(slots) filter (where kind = 'backfill') as backfill
    from leases
    where tenant_id = %(tenant_id)s and ended_at is null and expires_at > %(now)s
    group by rollup (job_type)
), hour as (
    select coalesce(job_type, '') as account, count(*) as granted from leases
    where tenant_id = %(tenant_id)s and granted_at > %(now)s::timestamptz - interval '1 hour'
    group by rollup (job_type)
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

-- name: system_idle_admissions
-- Tenants with leases that are over, or admissions that have left the hour, and nobody who asked since.
select distinct tenant_id from leases where ended_at is null and expires_at < clock_timestamp() - interval '1 minute'
union
select distinct tenant_id from admission_grants where at < clock_timestamp() - interval '1 hour 1 minute'
limit %(most)s;

-- name: admission_stale_accounts
-- Accounts of tenant_id with admissions that have left the hour.
select distinct account from admission_grants
where tenant_id = %(tenant_id)s and at < clock_timestamp() - interval '1 hour'
limit %(most)s;
