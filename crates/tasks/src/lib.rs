//! The built-in tasks and their providers.
