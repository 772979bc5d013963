-- name: asks_extent
-- How many asks of tenant_id were recorded between two moments, and whether any before.
select coalesce(sum(asked) filter (where at >= %(since)s), 0)::bigint as asked,
    coalesce(bool_or(at < %(since)s), false) as older
from asks
where tenant_id = %(tenant_id)s and day_slot = any(%(day_slots)s) and at >= %(oldest)s and at <= %(until)s;

-- name: asks_pages
-- Where pages of so many rows end, of what was decided for tenant_id between two moments.
select at, record_id
from (
    select at, record_id, row_number() over (order by at, record_id) as place
    from asks
    where tenant_id = %(tenant_id)s and day_slot = any(%(day_slots)s) and at >= %(since)s and at <= %(until)s
) as placed
where place %% %(most)s = 0
order by at, record_id;

-- name: asks_read
-- What was decided for tenant_id after one place of the record up to another, in its order; arrays as their text.
select (extract(epoch from at) * 1000000)::bigint as micros, share::text as share, accounts, limits::text, state::text,
    kinds::text, places::text, slots::text, seconds::text, tokens::text
from asks
where tenant_id = %(tenant_id)s and day_slot = any(%(day_slots)s)
    and (at, record_id) > (%(after)s, %(after_id)s) and (at, record_id) <= (%(upto)s, %(upto_id)s)
order by at, record_id;

-- name: system_forget_asks
-- Empty the record of asks of days that are older than so many.
select forget_asks(%(days)s) as freed;
