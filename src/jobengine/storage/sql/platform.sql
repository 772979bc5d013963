-- name: system_lock_migrations
-- One migration at a time; the lock is the session's.
select pg_advisory_lock(%(lock)s);

-- name: system_unlock_migrations
-- Let the next migration in.
select pg_advisory_unlock(%(lock)s);

-- name: system_find_role
-- One row if the role exists in this cluster.
select 1 from pg_roles where rolname = %(role)s;

-- name: system_is_member
-- Whether the login may already act as the role.
select pg_has_role(%(login)s, %(role)s, 'member') and not (select rolsuper from pg_roles where rolname = %(login)s)
    or exists (select from pg_roles where rolname = %(login)s and rolsuper);

-- name: system_ready
-- The revision of the schema; no row means that migrations have not run.
select version_num from jobengine.alembic_version;

-- name: set_tenant
-- Bind the transaction to one tenant: row-level security shows and takes nothing of any other tenant_id.
select set_config('jobengine.tenant', %(tenant_id)s, true), clock_timestamp() as now;

-- name: now
-- The database's clock at this moment, not at the transaction's start. tenant_id plays no part.
select clock_timestamp() as now;

-- name: system_find_installation
-- The one row that tells whose database this is.
select issuer, master_check from installation;

-- name: system_start_installation
-- Write the row at the first start; a row that is there stays as it is.
insert into installation (issuer, master_check) values (%(issuer)s, %(master_check)s) on conflict do nothing;

-- name: system_fix_issuer
-- Fix the issuer once; a fixed issuer stays.
update installation set issuer = %(issuer)s where issuer is null;

-- name: system_start_policy
-- Write the first policy; one that is there stays.
insert into policy (document) values (%(document)s) on conflict do nothing;

-- name: system_add_tenant
-- A tenant exists from its first client; adding it again changes nothing.
insert into tenants (tenant_id) values (%(tenant_id)s) on conflict do nothing;

-- name: system_has_tenant
-- One row if the tenant exists.
select 1 from tenants where tenant_id = %(tenant_id)s;

-- name: system_prune_idempotency_keys
-- Forget answers older than a day.
delete from idempotency_keys where created_at < clock_timestamp() - interval '24 hours';

-- name: system_prune_leases
-- Forget some of the leases that ended more than an hour ago, the time a repeated release is answered.
delete from leases where ctid = any(array(
    select ctid from leases where ended_at < clock_timestamp() - interval '1 hour 1 minute' limit %(most)s
));

-- name: system_prune_denials
-- Forget denial counts older than the hour that the summary shows.
delete from admission_denials where minute < clock_timestamp() - interval '2 hours';

-- name: system_prune_revoked_tokens
-- Forget revocations of tokens that have run out by themselves.
delete from revoked_tokens where expires_at < clock_timestamp() - interval '1 hour';

-- name: idempotency_claim
-- Take the key for this request of tenant_id; a concurrent repeat waits here for the first to end. No row: it was taken.
insert into idempotency_keys (tenant_id, client_id, key, path, body_digest)
values (%(tenant_id)s, %(client_id)s, %(key)s, %(path)s, %(body_digest)s)
on conflict (tenant_id, client_id, key, path) do update
    set body_digest = excluded.body_digest, status = null, headers = null, body = null, created_at = clock_timestamp()
    where idempotency_keys.created_at < clock_timestamp() - interval '24 hours'
returning 1;

-- name: idempotency_find
-- The answer kept under the key of tenant_id.
select body_digest, status, headers, body from idempotency_keys
where tenant_id = %(tenant_id)s and client_id = %(client_id)s and key = %(key)s and path = %(path)s;

-- name: idempotency_keep
-- Keep the first answer for the repeats within tenant_id.
update idempotency_keys set status = %(status)s, headers = %(headers)s, body = %(body)s
where tenant_id = %(tenant_id)s and client_id = %(client_id)s and key = %(key)s and path = %(path)s;

-- name: idempotency_free
-- Free the key of tenant_id: only successes are repeated.
delete from idempotency_keys
where tenant_id = %(tenant_id)s and client_id = %(client_id)s and key = %(key)s and path = %(path)s;

-- name: get_policy
-- The platform's policy; the same for every tenant_id.
select version, document, updated_at from policy;

-- name: policy_changes
-- What the policy said before each change since a time, oldest first; the same for every tenant_id.
select document, replaced_at from policy_history where replaced_at > %(since)s order by version;

-- name: lock_policy
-- The platform's policy, kept from others until the transaction ends; no row for any tenant_id but the platform's own.
select version, document from policy for update;

-- name: set_policy
-- Replace the policy, which the caller holds, and remember what it said. Not a tenant_id's data.
with before as (
    insert into policy_history (version, document, replaced_at) select version, document, clock_timestamp() from policy
    where current_setting('jobengine.tenant', true) = '_platform'
)
update policy set document = %(document)s, version = version + 1, updated_at = clock_timestamp()
returning version;
