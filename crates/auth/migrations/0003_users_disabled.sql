-- Users who may sign in no more, and when the audit log was last told that a bucket of the throttle is full. Code that knows
-- neither column needs neither: it fills none and reads none.
alter table auth.user add column disabled_at timestamptz;
create index user_disabled on auth.user (id desc) where disabled_at is not null;

alter table auth.login_throttle add column told_at timestamptz;
