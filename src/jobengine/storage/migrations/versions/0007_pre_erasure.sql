-- Reasons that can be erased.

-- Which entries lost their texts, and the entry that says who did that and why.
create table audit_erasures (
    tenant_id       text not null,
    entry_id        uuid not null,
    erased_in       uuid not null,
    primary key (tenant_id, entry_id),
    foreign key (tenant_id, entry_id) references audit_entries,
    foreign key (tenant_id, erased_in) references audit_entries
);

alter table audit_erasures enable row level security;
alter table audit_erasures force row level security;
create policy own_tenant on audit_erasures to jobengine_app using (tenant_id = current_setting('jobengine.tenant', true));
grant select, insert on audit_erasures to jobengine_app;

-- A text goes only with an entry that says so, whatever a query asks for.
create policy told_of on audit_texts as restrictive for delete to jobengine_app using (
    exists (select from audit_erasures e where e.tenant_id = audit_texts.tenant_id and e.entry_id = audit_texts.entry_id));
grant delete on audit_texts to jobengine_app;
