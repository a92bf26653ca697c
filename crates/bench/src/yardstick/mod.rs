//! What Guildhall is held against: the same work done with as little as can be, and others' programs at their best.

pub(crate) mod graphile;
pub(crate) mod nginx;
pub(crate) mod own_rows;
pub(crate) mod raw_sql;
pub(crate) mod wrk;
