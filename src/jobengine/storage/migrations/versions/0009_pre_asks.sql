-- The record of asks: one row for each transaction that decided admissions, its operations as columns of arrays.

-- A day's rows lie in one of 64 partitions, by the number of the day: nothing has to be made at midnight, and a day that
-- is over is emptied at once, locking nobody who writes today.
create table asks (
    tenant_id       text not null,
    day_slot        smallint not null,
    at              timestamptz not null,
    record_id       bigint generated always as identity,
    share           numeric not null,
    asked           integer not null,
    accounts        text[] not null,            -- whom the operations are about; '' is the tenant as a whole
    limits          bigint[] not null,          -- of each account: flags, max_active, max_per_hour, burst, refill in millionths
    state           bigint[] not null,          -- of each account: active, of backfills, this hour, whole tokens, 10^-12, at
    kinds           smallint[] not null,
    places          smallint[] not null,
    slots           bigint[] not null,
    seconds         integer[] not null,
    tokens          bigint[] not null,
    primary key (tenant_id, at, record_id, day_slot)
) partition by list (day_slot);

do $$
begin
    for slot in 0..63 loop
        execute format('create table %I partition of asks for values in (%s)', 'asks_' || lpad(slot::text, 2, '0'), slot);
        execute format('alter table %I enable row level security', 'asks_' || lpad(slot::text, 2, '0'));
        execute format('alter table %I force row level security', 'asks_' || lpad(slot::text, 2, '0'));
        execute format('grant truncate on %I to jobengine_system', 'asks_' || lpad(slot::text, 2, '0'));
    end loop;
end
$$;

alter table asks enable row level security;
alter table asks force row level security;
create policy own_tenant on asks to jobengine_app using (tenant_id = current_setting('jobengine.tenant', true));
grant select, insert on asks to jobengine_app;

-- Empty the partitions of days that are older than so many days; one that is being read is left for the next time.
create function forget_asks(keep_days integer) returns integer
language plpgsql set lock_timeout = '100ms' as $$
declare
    today constant integer := floor(extract(epoch from clock_timestamp()) / 86400);
    part text;
    freed integer := 0;
begin
    for slot in 0..63 loop
        part := 'asks_' || lpad(slot::text, 2, '0');
        if mod(mod(today + 1 - slot, 64) + 64, 64) > keep_days + 1 and pg_relation_size(part::regclass) > 0 then
            begin
                execute format('truncate %I', part);
                freed := freed + 1;
            exception when lock_not_available then
                null;
            end;
        end if;
    end loop;
    return freed;
end
$$;
revoke all on function forget_asks from public;
grant execute on function forget_asks to jobengine_system;
