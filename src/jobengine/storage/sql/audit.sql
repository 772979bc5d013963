-- name: audit_record
-- Store a sealed entry of tenant_id, its texts, and its place in the queue for the tree. Without a log there is no shard,
-- which the queue does not take: the transaction fails.
with kept as (
    insert into audit_entries (tenant_id, entry_id, occurred_at, action, outcome, actor_id, resource_type, resource_id,
        token_id, leaf, leaf_hash)
    values (%(tenant_id)s, %(entry_id)s, %(occurred_at)s, %(action)s, %(outcome)s, %(actor_id)s, %(resource_type)s,
        %(resource_id)s, %(token_id)s, %(leaf)s, %(leaf_hash)s)
), texts as (
    insert into audit_texts (tenant_id, entry_id, field, salt, text)
    select %(tenant_id)s, %(entry_id)s, o.field, o.salt, o.text
    from unnest(%(fields)s::text[], %(salts)s::bytea[], %(texts)s::text[]) as o(field, salt, text)
)
insert into audit_intake (tenant_id, shard, entry_id, leaf_hash)
values (%(tenant_id)s, (select shard from audit_logs where tenant_id = %(tenant_id)s), %(entry_id)s, %(leaf_hash)s);

-- name: audit_head
-- The head of the log of tenant_id, and how many places of its tree are taken: as many as the head says.
select origin, size, frontier, root_hash, checkpoint, anchored_size, anchored_in, stuck_because,
    (select coalesce(max(sequence) + 1, 0) from audit_tree where tenant_id = %(tenant_id)s) as placed
from audit_logs where tenant_id = %(tenant_id)s;

-- name: audit_list_all
-- Entries of tenant_id that have their place in the tree, oldest first, after a place: those places first, and then what
-- stands at each, so that no plan reads more of them.
select t.sequence, t.leaf_hash as tree_hash, t.entry_id, e.leaf from (
    select sequence, leaf_hash, entry_id from audit_tree
    where tenant_id = %(tenant_id)s and sequence > %(after)s order by sequence limit %(most)s
) t left join audit_entries e on e.tenant_id = %(tenant_id)s and e.entry_id = t.entry_id
order by t.sequence;

-- name: audit_plan_anew
-- Plan each query of this transaction for its values, of tenant_id and of a filter: what is rare has an index, and a plan
-- made for all values cannot know what is.
select set_config('plan_cache_mode', 'force_custom_plan', true);

-- name: audit_list
-- Entries of tenant_id that have their place in the tree and match a filter, oldest first, after a place.
select t.sequence, t.leaf_hash as tree_hash, e.entry_id, e.leaf from audit_tree t
join audit_entries e on e.tenant_id = t.tenant_id and e.entry_id = t.entry_id
where t.tenant_id = %(tenant_id)s and t.sequence > %(after)s
    and (%(action)s::text is null or e.action = %(action)s)
    and (%(resource_type)s::text is null or e.resource_type = %(resource_type)s)
    and (%(resource_id)s::text is null or e.resource_id = %(resource_id)s)
    and (%(actor)s::text is null or e.actor_id = %(actor)s)
    and (%(since)s::timestamptz is null or e.occurred_at >= %(since)s)
    and (%(until)s::timestamptz is null or e.occurred_at < %(until)s)
order by t.sequence limit %(most)s;

-- name: audit_get
-- One entry of tenant_id, with its place if it has one yet.
select t.sequence, t.leaf_hash as tree_hash, e.entry_id, e.leaf from audit_entries e
left join audit_tree t on t.tenant_id = e.tenant_id and t.entry_id = e.entry_id
where e.tenant_id = %(tenant_id)s and e.entry_id = %(entry_id)s;

-- name: audit_texts
-- The texts of some entries of tenant_id that have not been erased.
select entry_id, field, salt, text from audit_texts
where tenant_id = %(tenant_id)s and entry_id = any(%(entry_ids)s::uuid[]);

-- name: audit_page
-- Everything that is kept of a stretch of the tree of tenant_id, in its order, for checking and exporting. The time is
-- text, because whoever changed it may have made it one that no program can hold.
select t.sequence, t.entry_id, t.leaf_hash as tree_hash, e.leaf, e.leaf_hash, e.occurred_at::text, e.action, e.outcome,
    e.actor_id, e.resource_type, e.resource_id, e.token_id
from audit_tree t
left join audit_entries e on e.tenant_id = t.tenant_id and e.entry_id = t.entry_id
where t.tenant_id = %(tenant_id)s and t.sequence >= %(first)s and t.sequence < %(end)s
order by t.sequence;

-- name: audit_unplaced
-- Entries of tenant_id that have no place in the tree, oldest first: they wait for it, or somebody took it away.
select entry_id from audit_entries e
where tenant_id = %(tenant_id)s
    and not exists (select from audit_tree t where t.tenant_id = %(tenant_id)s and t.entry_id = e.entry_id)
order by entry_id limit %(most)s;

-- name: audit_nodes
-- Roots of complete subtrees of the tree of tenant_id; those of level 0 are the leaf hashes. Each place is sought as the
-- first from there on, which the primary key alone gives: a plan made while the log was young else reads all of it for ever.
select 0::smallint as level, t.sequence as index, t.leaf_hash as hash
from unnest(%(leaves)s::bigint[]) as wanted(place) cross join lateral (
    select sequence, leaf_hash from audit_tree
    where tenant_id = %(tenant_id)s and sequence >= wanted.place order by sequence limit 1
) t
where t.sequence = wanted.place
union all
select wanted.level, wanted.index, n.hash
from unnest(%(levels)s::smallint[], %(indices)s::bigint[]) as wanted(level, index) cross join lateral (
    select hash from audit_nodes
    where tenant_id = %(tenant_id)s and level = wanted.level and index = wanted.index limit 1
) n;

-- name: system_join_sequencers
-- Count this process among those that sequence. Its membership ends before its shards do, so that whoever takes them
-- knows the new shares.
insert into audit_sequencers (owner, lease_until) values (%(owner)s, clock_timestamp() + interval '2.9 seconds')
on conflict (owner) do update set lease_until = excluded.lease_until;

-- name: system_own_shards
-- Renew this sequencer's shards and take free ones, up to its share, on the database's clock. Shards go by their numbers, so
-- that the same processes always keep the same ones.
update audit_shards set owner = %(owner)s, lease_until = clock_timestamp() + interval '3 seconds'
where shard in (
    select shard from audit_shards where owner = %(owner)s or lease_until < clock_timestamp()
    order by owner is distinct from %(owner)s, shard
    limit (select ceil(64.0 / count(*))::bigint from audit_sequencers where lease_until > clock_timestamp())
    for update skip locked
)
returning shard;

-- name: system_give_back_shards
-- Give back what is above this sequencer's share; somebody whose share is not full takes it within a second.
update audit_shards set owner = null, lease_until = clock_timestamp()
where owner = %(owner)s and shard <> all(%(kept)s::smallint[]);

-- name: system_leave_shards
-- Give the shards back at an orderly stop, so that another process need not wait.
with member as (delete from audit_sequencers where owner = %(owner)s or lease_until < clock_timestamp() - interval '1 hour')
update audit_shards set owner = null, lease_until = clock_timestamp() where owner = %(owner)s;

-- name: system_waiting_logs
-- Logs of these shards with entries that wait for their place. It steps from log to log along the primary key, so that
-- a flood in one of them costs no more than a single entry.
with recursive waiting(log) as (
    (select tenant_id from audit_intake order by tenant_id limit 1)
    union all
    select (select tenant_id from audit_intake where tenant_id > waiting.log order by tenant_id limit 1)
    from waiting where log is not null
)
select l.tenant_id from waiting join audit_logs l on l.tenant_id = waiting.log
where l.shard = any(%(shards)s::smallint[]);

-- name: system_step_by_index
-- Let the queries of this transaction find rows by their indexes alone. A plan is made once for all that comes, often while
-- little waits; one that reads all that waits would read the whole of a later flood, at each step.
select set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true);

-- name: system_lock_heads
-- The heads of some logs, kept from other sequencers until the transaction ends; logs that another one holds are left out.
select tenant_id, origin, size, frontier, checkpoint, anchored_size from audit_logs
where tenant_id = any(%(logs)s::text[])
for update skip locked;

-- name: system_place_intake
-- Take waiting entries of some logs and give them their places behind the size of each: of each log the oldest, and of all
-- of them in turn, so that a flood in one log leaves room for the others. A place is given once or the transaction fails.
-- They are taken by where they lie, and the thousand is written out: a step does not read all that waits in a flood.
with wanted as (
    select w.log, w.size from unnest(%(logs)s::text[], %(sizes)s::bigint[]) as w(log, size)
), taken as (
    delete from audit_intake where ctid = any(array(
        select w.lies
        from wanted l cross join lateral (
            select ctid as lies, row_number() over (order by intake_id) as turn
            from audit_intake where tenant_id = l.log order by intake_id limit 1000
        ) w
        order by w.turn limit %(most)s
    ))
    returning tenant_id, intake_id, entry_id, leaf_hash
), placed as (
    insert into audit_tree (tenant_id, sequence, entry_id, leaf_hash)
    select t.tenant_id, w.size - 1 + row_number() over (partition by t.tenant_id order by t.intake_id), t.entry_id, t.leaf_hash
    from taken t join wanted w on w.log = t.tenant_id
    returning tenant_id, sequence, entry_id, leaf_hash
)
select tenant_id, sequence, entry_id, leaf_hash from placed order by tenant_id, sequence;

-- name: system_place_nodes
-- Store the subtree roots that became complete, each of a log by its number, the hashes as one text of bytes; a node is
-- written once or the transaction fails.
insert into audit_nodes (tenant_id, level, index, hash)
select (%(logs)s::text[])[n.log], n.level, n.index, substring(%(hashes)s::bytea from 32 * n.place::integer - 31 for 32)
from unnest(%(numbers)s::smallint[], %(levels)s::smallint[], %(indices)s::bigint[]) with ordinality
    as n(log, level, index, place);

-- name: system_advance_heads
-- Move the heads of some logs, each if it is still where this step began; no row of one means that it is not.
update audit_logs l set size = h.size, frontier = h.frontier::bytea[], root_hash = h.root_hash, checkpoint = h.checkpoint,
    signed_by = %(signed_by)s, advanced_at = clock_timestamp(), stuck_since = null, stuck_because = null
from unnest(%(logs)s::text[], %(from_sizes)s::bigint[], %(sizes)s::bigint[], %(frontiers)s::text[], %(roots)s::bytea[],
    %(checkpoints)s::text[]) as h(log, from_size, size, frontier, root_hash, checkpoint)
where l.tenant_id = h.log and l.size = h.from_size
returning l.tenant_id;

-- name: system_find_known
-- Which of some entries of a log wait for their place or have it.
select entry_id from audit_intake where tenant_id = %(log)s and entry_id = any(%(entry_ids)s::uuid[])
union all
select entry_id from audit_tree where tenant_id = %(log)s and entry_id = any(%(entry_ids)s::uuid[]);

-- name: system_add_log
-- Begin the log of a tenant; one that is there stays.
insert into audit_logs (tenant_id, origin, shard, root_hash) values (%(tenant_id)s, %(origin)s, %(shard)s, %(root_hash)s)
on conflict do nothing;

-- name: system_sequencer_lag
-- Seconds for which a log has stood still while an entry of it waited, the longest; 0 when nothing waits. A log that slept
-- for a day is not a day behind, and one that cannot go on is told of by itself. It steps from log to log, as above.
with recursive waiting(log, queued_at) as (
    (select tenant_id, queued_at from audit_intake order by tenant_id, intake_id limit 1)
    union all
    select next.tenant_id, next.queued_at from waiting cross join lateral (
        select tenant_id, queued_at from audit_intake where tenant_id > waiting.log order by tenant_id, intake_id limit 1
    ) next
)
select coalesce(greatest(extract(epoch from clock_timestamp() - min(greatest(l.advanced_at, w.queued_at))), 0), 0)
    ::double precision as seconds
from waiting w join audit_logs l on l.tenant_id = w.log where l.stuck_since is null;

-- name: system_count_waiting
-- Entries without a place, and logs that cannot go on.
select (select count(*) from audit_intake) as waiting,
    (select count(*) from audit_logs where stuck_since is not null) as stuck;

-- name: system_orphan_shards
-- Shards that nobody has sequenced for longer than another process needs to take them.
select count(*) as orphans from audit_shards where lease_until < clock_timestamp() - interval '5 seconds';

-- name: system_mark_stuck
-- Note that a log cannot go on; no row when that was known.
update audit_logs set stuck_since = clock_timestamp(), stuck_because = %(because)s
where tenant_id = %(log)s and stuck_since is null
returning origin;

-- name: system_signed_otherwise
-- Some logs of these shards whose heads are not signed by the key that signs now.
select tenant_id from audit_logs
where shard = any(%(shards)s::smallint[]) and size > 0 and signed_by is distinct from %(signed_by)s and stuck_since is null
limit %(most)s;

-- name: system_sign_head
-- Put a head that did not move under the key that signs now.
update audit_logs set checkpoint = %(checkpoint)s, signed_by = %(signed_by)s
where tenant_id = %(log)s and size = %(size)s;

-- name: system_take_beat
-- Take the turn to write a heartbeat, unless somebody had it less than a minute ago.
update installation set beat_at = clock_timestamp() where singleton in (
    select singleton from installation where beat_at < clock_timestamp() - interval '58 seconds' for update skip locked
)
returning singleton;

-- name: system_changed_logs
-- Heads of tenants' logs that the platform's log does not hold yet, those that wait longest first.
select tenant_id, origin, size, frontier, checkpoint, anchored_size from audit_logs
where size <> anchored_size and stuck_since is null and tenant_id <> %(platform)s
order by advanced_at limit %(most)s;

-- name: system_note_anchors
-- Note which entry of the platform's log holds the heads of some logs.
update audit_logs l set anchored_size = a.size, anchored_in = %(entry_id)s
from unnest(%(logs)s::text[], %(sizes)s::bigint[]) as a(log, size) where l.tenant_id = a.log;

-- name: system_find_logs
-- Logs by their origins.
select tenant_id, origin, size from audit_logs where origin = any(%(origins)s::text[]);

-- name: system_find_nodes
-- Roots of complete subtrees of several logs, each place sought as for a proof.
select wanted.log as tenant_id, 0::smallint as level, t.sequence as index, t.leaf_hash as hash
from unnest(%(logs)s::text[], %(levels)s::smallint[], %(indices)s::bigint[]) as wanted(log, level, index)
cross join lateral (
    select sequence, leaf_hash from audit_tree
    where tenant_id = wanted.log and sequence >= wanted.index order by sequence limit 1
) t
where wanted.level = 0 and t.sequence = wanted.index
union all
select wanted.log, wanted.level, wanted.index, n.hash
from unnest(%(logs)s::text[], %(levels)s::smallint[], %(indices)s::bigint[]) as wanted(log, level, index)
cross join lateral (
    select hash from audit_nodes
    where tenant_id = wanted.log and level = wanted.level and index = wanted.index limit 1
) n;

-- name: system_count_logs
-- How many logs there are, and how many of them cannot go on.
select count(*) as logs, count(stuck_since) as stuck from audit_logs;

-- name: audit_of_token
-- What was done under a token in tenant_id, in its order, placed or not.
select t.sequence, t.leaf_hash as tree_hash, e.entry_id, e.leaf from audit_entries e
left join audit_tree t on t.tenant_id = e.tenant_id and t.entry_id = e.entry_id
where e.tenant_id = %(tenant_id)s and e.token_id = %(token_id)s and e.entry_id > %(after)s
order by e.entry_id limit %(most)s;

-- name: audit_about_token
-- The grant of a token in tenant_id, and how many acts under it ended how.
select (array_agg(entry_id) filter (where action = %(grant)s))[1] as granted_in,
    count(*) filter (where action <> %(grant)s and outcome = 'success') as done,
    count(*) filter (where outcome = 'refused') as refused,
    count(*) filter (where outcome = 'failure') as failed
from audit_entries where tenant_id = %(tenant_id)s and token_id = %(token_id)s
having count(*) > 0;

-- name: audit_granted
-- Some grants of tenant_id in their order, up to a moment: whether each was bound to a reason, may act in other tenants, and
-- whether anything was done under it here. What a leaf says of its own reason no text in it can look like.
select g.entry_id, g.token_id, position('"reason":{'::bytea in g.leaf) > 0 as privileged,
    position('orch:govern'::bytea in g.leaf) > 0 as governs,
    exists (
        select from audit_entries u where u.tenant_id = %(tenant_id)s and u.token_id = g.token_id
            and u.action <> all(%(no_use)s::text[])
    ) as used
from audit_entries g
where g.tenant_id = %(tenant_id)s and g.action = %(grant)s and g.entry_id > %(after)s and g.occurred_at < %(before)s
order by g.entry_id limit %(most)s;

-- name: audit_acted
-- Some acts of tenant_id under tokens, in their order, and whether the token was granted here.
select a.entry_id, a.token_id,
    exists (
        select from audit_entries g
        where g.tenant_id = %(tenant_id)s and g.token_id = a.token_id and g.action = %(grant)s
    ) as granted
from audit_entries a
where a.tenant_id = %(tenant_id)s and a.token_id is not null and a.entry_id > %(after)s and a.action <> all(%(no_use)s::text[])
order by a.entry_id limit %(most)s;

-- name: audit_get_some
-- Some entries of tenant_id, placed or not, in their order.
select t.sequence, t.leaf_hash as tree_hash, e.entry_id, e.leaf from audit_entries e
left join audit_tree t on t.tenant_id = e.tenant_id and t.entry_id = e.entry_id
where e.tenant_id = %(tenant_id)s and e.entry_id = any(%(entry_ids)s::uuid[])
order by e.entry_id;

-- name: system_find_tokens
-- In whichever tenants: tokens that were granted, and tokens under which something was done. Only a governor's reach so far.
select distinct e.token_id, e.action = %(grant)s as granted
from (select tenant_id from audit_logs) t cross join lateral (
    select token_id, action from audit_entries
    where tenant_id = t.tenant_id and token_id = any(%(tokens)s::text[]) and action <> all(%(ignored)s::text[])
) e;

-- name: system_unwitnessed_logs
-- Logs whose head is not the one that a witness cosigned last, and the size that it cosigned.
select l.tenant_id, l.origin, coalesce(c.size, 0) as cosigned from audit_logs l
left join audit_cosignatures c on c.tenant_id = l.tenant_id and c.witness = %(witness)s
where l.size > 0 and split_part(l.checkpoint, e'\n\n', 1) is distinct from split_part(c.checkpoint, e'\n\n', 1)
order by l.tenant_id;

-- name: system_keep_cosignature
-- Keep what a witness signed; an older one of it is replaced.
insert into audit_cosignatures (tenant_id, witness, size, checkpoint, line, cosigned_at)
values (%(log)s, %(witness)s, %(size)s, %(checkpoint)s, %(line)s, to_timestamp(%(cosigned_at)s::bigint))
on conflict (tenant_id, witness) do update set size = excluded.size, checkpoint = excluded.checkpoint,
    line = excluded.line, cosigned_at = excluded.cosigned_at;

-- name: audit_cosignatures
-- What witnesses signed last of the log of tenant_id, the largest tree first.
select witness, size, checkpoint, line from audit_cosignatures where tenant_id = %(tenant_id)s
order by size desc, witness;
