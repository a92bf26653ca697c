//! The service as its callers see it: every call goes through the generated clients, the guard and a verifier that fetched
//! the service's own keys, onto a real database. One binary, so that one server is started for all of them.

mod audit;
mod first_admin;
mod login;
mod profile;
mod refresh;
mod revocations;
mod service_keys;
mod sessions;
mod signing_keys;
mod support;
mod sweeps;
mod tokens;
mod users;
mod users_admin;
