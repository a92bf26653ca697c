-- What lay in the queue until its producer no longer kept it will not come again when that sends again what it keeps, and
-- must not be let go (kit/src/inbox.rs). The default is for replicas of the former version, which take it that everything
-- comes again.
alter table inbox_source add column kept_from timestamptz not null default '1970-01-01 00:00:00+00';
