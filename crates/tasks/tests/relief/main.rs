//! What the provider `relief` promises, checked from outside: pictures are made here, models are read by a reader that
//! shares nothing with the writer.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

mod formats;
mod glb;
mod photographs;
mod pictures;
mod reading;
mod refusals;
mod shape;
mod validator;

use std::path::Path;

use tasks::providers::relief::{self, Fault, Model, Params};

/// Makes the relief of a picture given as bytes, under a name that says nothing.
fn make(picture: &[u8], params: &Params) -> Result<Model, Fault> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("upload");
    std::fs::write(&path, picture).unwrap();
    relief::make(&path, params, &mut |_, _| {})
}

/// Few samples, so that tests are quick, and no smoothing, so that heights are what the pixels say.
fn coarse() -> Params {
    Params { samples: 33, smoothing: 0.0, ..Params::default() }
}

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}
