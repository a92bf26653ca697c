//! What makes a model out of a picture: one file or folder for each provider.
//!
//! A provider here is pure: it is given a file and parameters and answers with bytes. It knows no queue, no job and no
//! network of ours; the task that calls it does the rest.

pub mod relief;
