-- Who may touch what. jobengine_app works inside one tenant's transaction; jobengine_system serves the closed list of
-- system_* queries. Neither owns a table, neither may TRUNCATE, and nobody but the owner may change an audit entry.

grant usage on schema jobengine to jobengine_app, jobengine_system;

do $$
declare
    name text;
begin
    foreach name in array array[
        'tenants', 'revoked_tokens', 'audit_logs', 'audit_entries', 'audit_texts', 'audit_intake', 'audit_tree', 'audit_nodes',
        'quotas', 'quota_history', 'quota_overrides', 'admission_accounts', 'admission_grants', 'admission_denials',
        'leases', 'suppression_keys', 'backfills', 'backfill_ranges', 'batches', 'batch_attempts', 'event_calls',
        'event_keys', 'idempotency_keys'
    ] loop
        execute format('alter table %I enable row level security', name);
        execute format('alter table %I force row level security', name);
        -- After a transaction that set it, the setting reads '' and not null: either names no tenant.
        execute format(
            'create policy own_tenant on %I to jobengine_app using (tenant_id = current_setting(''jobengine.tenant'', true))',
            name);
    end loop;
    foreach name in array array[
        'tenants', 'revoked_tokens', 'audit_logs', 'audit_intake', 'audit_tree', 'audit_nodes', 'leases',
        'backfills', 'batches', 'idempotency_keys', 'admission_denials'
    ] loop
        execute format('create policy every_tenant on %I to jobengine_system using (true)', name);
    end loop;
end
$$;

alter table policy enable row level security;
alter table policy force row level security;
create policy anybody_reads on policy for select to jobengine_app using (true);
create policy platform_writes on policy for update to jobengine_app
    using (current_setting('jobengine.tenant', true) = '_platform');
create policy system_starts on policy to jobengine_system using (true);

grant select on tenants, policy, audit_logs, audit_tree, audit_nodes to jobengine_app;
grant select, insert on revoked_tokens, audit_entries, audit_texts, quota_history, event_calls to jobengine_app;
grant insert on audit_intake to jobengine_app;
grant update on policy to jobengine_app;
grant select, insert, update on quotas, quota_overrides, admission_accounts, admission_denials, leases,
    suppression_keys, backfills, batches, batch_attempts, event_keys to jobengine_app;
grant select, insert, update, delete on admission_grants to jobengine_app;
grant select, insert, update, delete on backfill_ranges, idempotency_keys to jobengine_app;

grant select, insert, update on installation, clients, signing_keys, audit_logs to jobengine_system;
grant select, insert on tenants, policy, audit_tree, audit_nodes to jobengine_system;
grant select, update on audit_shards to jobengine_system;
grant select, delete on revoked_tokens, audit_intake, leases, idempotency_keys, admission_denials to jobengine_system;
grant select on backfills, batches, alembic_version to jobengine_system;
