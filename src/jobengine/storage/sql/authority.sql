-- name: system_find_client
-- The client with this id, disabled ones too.
select client_id, name, owner, secret_hash, tenants, roles, created_at, disabled_at from clients
where client_id = %(client_id)s;

-- name: system_list_clients
-- All clients, oldest first.
select client_id, name, owner, secret_hash, tenants, roles, created_at, disabled_at from clients
order by created_at, client_id;

-- name: system_add_client
-- Store a new client.
insert into clients (client_id, name, owner, secret_hash, tenants, roles)
values (%(client_id)s, %(name)s, %(owner)s, %(secret_hash)s, %(tenants)s, %(roles)s);

-- name: system_disable_client
-- Disable a client for good; no row means that there is none, or that it was disabled before.
update clients set disabled_at = clock_timestamp() where client_id = %(client_id)s and disabled_at is null
returning client_id;

-- name: system_list_keys
-- Keys of one purpose, oldest first.
select kid, sealed_private, created_at, active_from, retire_at from signing_keys where purpose = %(purpose)s
order by created_at, kid;

-- name: system_lock_keys
-- Keep others from making keys until the transaction ends.
select pg_advisory_xact_lock(hashtext('jobengine signing keys'));

-- name: system_add_key
-- Store a new key, its private half sealed.
insert into signing_keys (kid, purpose, public_key, sealed_private, created_at, active_from, retire_at)
values (%(kid)s, %(purpose)s, %(public_key)s, %(sealed_private)s, %(created_at)s, %(active_from)s, %(retire_at)s);

-- name: system_retire_key
-- Set when a key stops verifying.
update signing_keys set retire_at = %(retire_at)s where kid = %(kid)s;

-- name: system_list_revoked
-- Tokens that were revoked and have not run out, and clients that were disabled: what every process must refuse.
select 'token' as kind, jti as id from revoked_tokens where expires_at > clock_timestamp()
union all
select 'client', client_id from clients where disabled_at is not null;

-- name: revoke_token
-- Revoke a token of tenant_id; revoking it again changes nothing.
insert into revoked_tokens (tenant_id, jti, client_id, expires_at)
values (%(tenant_id)s, %(jti)s, %(client_id)s, %(expires_at)s)
on conflict do nothing
returning jti;
