-- name: audit_export_page
-- A stretch of the tree of tenant_id in its order, for exporting: the leaves of the entries that are wanted, of the others
-- their hashes alone. An entry that is gone counts as wanted, so that it is missed.
select t.sequence, t.entry_id, t.leaf_hash as tree_hash, w.wanted, case when w.wanted then e.leaf end as leaf
from audit_tree t
left join audit_entries e on e.tenant_id = t.tenant_id and e.entry_id = t.entry_id
cross join lateral (select coalesce((%(action)s::text is null or e.action = %(action)s)
    and (%(since)s::timestamptz is null or e.occurred_at >= %(since)s)
    and (%(until)s::timestamptz is null or e.occurred_at < %(until)s), true) as wanted) w
where t.tenant_id = %(tenant_id)s and t.sequence >= %(first)s and t.sequence < %(end)s
order by t.sequence;

-- name: audit_add_erasure
-- Say which entry tells of the erasing of another one of tenant_id; only then may its texts go. No row: it is told of.
insert into audit_erasures (tenant_id, entry_id, erased_in) values (%(tenant_id)s, %(entry_id)s, %(erased_in)s)
on conflict do nothing returning 1;

-- name: audit_erasures
-- Which of some entries of tenant_id lost their texts in a way that an entry tells of.
select x.entry_id from audit_erasures x
join audit_entries e on e.tenant_id = x.tenant_id and e.entry_id = x.erased_in
where x.tenant_id = %(tenant_id)s and x.entry_id = any(%(entry_ids)s::uuid[])
    and e.action = 'audit.erased' and e.resource_type = 'audit_entry' and e.resource_id = x.entry_id::text;

-- name: audit_erase_texts
-- Delete the texts and salts of an entry of tenant_id.
delete from audit_texts where tenant_id = %(tenant_id)s and entry_id = %(entry_id)s;

-- name: idempotency_holding
-- The answers of tenant_id kept for repeats that hold one of some bytes.
select client_id, key, path, body from idempotency_keys
where tenant_id = %(tenant_id)s
    and exists (select from unnest(%(parts)s::bytea[]) as p(part) where position(p.part in body) > 0)
for update;

-- name: idempotency_rewrite
-- Change the body of an answer kept within tenant_id.
update idempotency_keys set body = %(body)s
where tenant_id = %(tenant_id)s and client_id = %(client_id)s and key = %(key)s and path = %(path)s;
