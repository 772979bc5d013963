-- Wake-ups that leave after commit.

-- What was sent to the broker and claimed by nobody yet. What is to be sent stands in the batches themselves: a batch
-- that is due and has no row here, or an old one.
create table batch_wakeups (
    tenant_id       text not null,
    batch_id        uuid not null,
    sent_at         timestamptz not null default clock_timestamp(),
    primary key (tenant_id, batch_id),
    foreign key (tenant_id, batch_id) references batches
);
alter table batch_wakeups enable row level security;
alter table batch_wakeups force row level security;
create policy every_tenant on batch_wakeups to jobengine_system using (true);
grant select, insert, update, delete on batch_wakeups to jobengine_system;

-- Which of several servers sends. Two at once would only send some wake-ups twice.
create table relay_turn (
    singleton       boolean primary key default true check (singleton),
    owner           text,
    lease_until     timestamptz not null default '-infinity'
);
insert into relay_turn default values;
grant select, update on relay_turn to jobengine_system;
