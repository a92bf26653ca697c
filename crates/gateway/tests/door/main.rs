//! The gateway over a real socket, with small roles behind it that stand in for `auth`, `jobs` and `admin`: they answer
//! by the same generated servers, behind the same guard, and remember what they were asked. The whole system with the real
//! roles is tested in the crate `guildhall`.

#![expect(clippy::unwrap_used, reason = "a test whose house cannot be built can only fail")]

mod admin;
mod batches;
mod docs;
mod edge;
mod files;
mod house;
mod identity;
mod input;
mod limits;
mod live;
mod schedules;
mod unique;
mod users;
