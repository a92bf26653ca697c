//! The built-in tasks and their providers.

pub mod providers;
