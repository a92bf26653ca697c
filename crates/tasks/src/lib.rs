//! The built-in tasks and their providers.

pub mod archive;
pub mod contact_sheet;
pub mod manifest;
pub mod providers;
pub mod samples;
