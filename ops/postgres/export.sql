-- One log as an export, straight from the database: for the day on which the service cannot make one, as without its
-- master key. jobengine-verify checks it like any other.
--
--   psql -XqAt -v tenant=acme -f ops/postgres/export.sql "$OWNER_URL" > acme.ndjson      ('_platform' is the platform's log)

select '{"format":1,"checkpoint":' || to_json(checkpoint) || '}'
from jobengine.audit_logs where tenant_id = :'tenant';

select '{"entry":' || convert_from(entry.leaf, 'UTF8') || ',"open":{' || coalesce((
        select string_agg(
            to_json(field) || ':["' || encode(salt, 'hex') || '",' || to_json(text) || ']', ',' order by field collate "C")
        from jobengine.audit_texts opening
        where opening.tenant_id = entry.tenant_id and opening.entry_id = entry.entry_id), '') || '}}'
from jobengine.audit_tree place
join jobengine.audit_entries entry on entry.tenant_id = place.tenant_id and entry.entry_id = place.entry_id
where place.tenant_id = :'tenant' order by place.sequence;
