-- name: system_count_backfills
-- Backfills that are not over, by status.
select status, count(*) as backfills from backfills
where status in ('pending', 'running', 'paused', 'canceling') group by status;

-- name: system_count_running_batches
-- Batches that a worker holds now.
select count(*) as running from batches where status = 'running';
