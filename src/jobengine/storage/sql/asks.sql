-- name: asks_add
-- Write down what one transaction of tenant_id decided.
insert into asks (tenant_id, day_slot, at, share, asked, accounts, limits, state, kinds, places, slots, seconds, tokens)
values (%(tenant_id)s, %(day_slot)s, %(at)s, %(share)s, %(asked)s, %(accounts)s, %(limits)s, %(state)s, %(kinds)s,
    %(places)s, %(slots)s, %(seconds)s, %(tokens)s);

-- name: asks_extent
-- How many asks of tenant_id were recorded between two moments, and whether any before.
select coalesce(sum(asked) filter (where at >= %(since)s), 0)::bigint as asked,
    coalesce(bool_or(at < %(since)s), false) as older
from asks
where tenant_id = %(tenant_id)s and day_slot = any(%(day_slots)s) and at >= %(oldest)s and at <= %(until)s;

-- name: asks_read
-- What was decided for tenant_id between two moments, in its order, after a cursor.
select (extract(epoch from at) * 1000000)::bigint as micros, at, record_id, share::text as share, accounts, limits, state,
    kinds, places, slots, seconds, tokens
from asks
where tenant_id = %(tenant_id)s and day_slot = any(%(day_slots)s) and at >= %(since)s and at <= %(until)s
    and (at, record_id) > (%(after)s, %(after_id)s)
order by at, record_id
limit %(most)s;

-- name: system_forget_asks
-- Empty the record of asks of days that are older than so many.
select forget_asks(%(days)s) as freed;
