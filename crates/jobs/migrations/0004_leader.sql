-- Who does what is common to all replicas: engine/leader.rs. One row; each taking of the lead has an epoch of its own.
create table jobs.leader (
  -- The key, so that a transaction under an epoch, which locks its row for key share, is no hindrance to a beat and one
  -- to whoever takes the lead.
  epoch bigint primary key,
  -- Grows while the leader lives.
  beat bigint not null,
  -- None: the last leader has laid it down.
  replica uuid
);
insert into jobs.leader values (0, 0, null);
