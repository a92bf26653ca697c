//! `relief`: a local stand-in for a model maker that turns a picture's brightness into height.
//!
//! It reconstructs nothing: bright is high, dark is low, transparent is the ground. The steps, one file each:
//! `decode` (file to [`picture::Picture`]) -> `height` (to a grid of heights) -> `mesh` (to a watertight body) ->
//! `texture` (the picture as JPEG) -> `preview` (a shaded PNG) -> `glb` (all of it as binary glTF 2.0).
//!
//! Everything is computed on the calling thread, reads no clock, and depends on the input and [`Params`] alone, so that
//! the same input gives the same bytes. It is meant for a child process with 400 MiB of memory: what would not fit is
//! refused from the file's header, before anything large is allocated.

mod decode;
mod glb;
mod height;
mod mesh;
mod picture;
mod preview;
mod texture;

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the relief is made. Missing fields take their defaults; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Length of the picture's longest side in the model, in millimetres.
    #[schemars(range(min = 10.0, max = 1000.0))]
    pub size_mm: f64,
    /// Height of white above black, in millimetres.
    #[schemars(range(min = 0.5, max = 100.0))]
    pub depth_mm: f64,
    /// Thickness of the plate behind the lowest point of the relief, in millimetres.
    #[schemars(range(min = 0.5, max = 50.0))]
    pub base_mm: f64,
    /// Vertices along the longest side.
    #[schemars(range(min = 16, max = 1024))]
    pub samples: u32,
    /// Blur radius (two standard deviations) in distances between neighbouring vertices; 0 blurs nothing.
    #[schemars(range(min = 0.0, max = 10.0))]
    pub smoothing: f64,
    /// Makes dark high and bright low. What is transparent stays on the ground.
    pub invert: bool,
}

impl Default for Params {
    fn default() -> Self {
        Self { size_mm: 100.0, depth_mm: 8.0, base_mm: 2.0, samples: 256, smoothing: 1.0, invert: false }
    }
}

impl Params {
    /// The ranges of the JSON Schema once more, for callers that did not go through it.
    fn check(&self) -> Result<(), Fault> {
        let ranges = [
            ("size_mm", self.size_mm, 10.0, 1000.0),
            ("depth_mm", self.depth_mm, 0.5, 100.0),
            ("base_mm", self.base_mm, 0.5, 50.0),
            ("samples", f64::from(self.samples), 16.0, 1024.0),
            ("smoothing", self.smoothing, 0.0, 10.0),
        ];
        for (name, value, min, max) in ranges {
            // Written so that NaN is out of range too.
            if !(min..=max).contains(&value) {
                return Err(Fault::Parameter(format!("{name} is {value}, but must be from {min} to {max}")));
            }
        }
        Ok(())
    }
}

/// A finished model.
#[derive(Debug, Clone)]
pub struct Model {
    /// Binary glTF 2.0 with the picture as its texture.
    pub glb: Vec<u8>,
    /// A shaded view, 512 x 512 pixels, PNG.
    pub preview_png: Vec<u8>,
    /// Triangles of the mesh.
    pub triangles: u64,
    /// Vertices of the mesh; each position occurs once.
    pub vertices: u64,
}

/// Why there is no model. The messages are for the person who sent the picture.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The bytes are no picture at all.
    #[error("this is not a picture: {0}")]
    NotAPicture(String),
    /// A picture, but of a kind that is not taken.
    #[error("this kind of picture is not supported: {0}")]
    Unsupported(String),
    /// The picture ends early or is damaged inside.
    #[error("the picture is truncated or damaged: {0}")]
    Truncated(String),
    /// More pixels or more memory than is allowed; found in the header, before decoding.
    #[error("the picture is too large: {width} x {height} pixels, {reason}")]
    TooLarge {
        /// Width that the header states, in pixels.
        width: u64,
        /// Height that the header states, in pixels.
        height: u64,
        /// Which limit it is over, and by what.
        reason: String,
    },
    /// The file has no bytes.
    #[error("the file is empty (0 bytes)")]
    Empty,
    /// A parameter is out of its range.
    #[error("a parameter is out of range: {0}")]
    Parameter(String),
    /// The file could not be read: ours to mend, not the sender's.
    #[error("the picture could not be read: {0}")]
    Io(#[from] std::io::Error),
}

impl Fault {
    /// The error kind of a job that ends with this fault: `invalid_input`, which no retry can mend, or `internal`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Io(_) => "internal",
            Self::NotAPicture(_)
            | Self::Unsupported(_)
            | Self::Truncated(_)
            | Self::TooLarge { .. }
            | Self::Empty
            | Self::Parameter(_) => "invalid_input",
        }
    }
}

/// Makes the relief of the picture in the file at `path`, whatever its name says.
///
/// `progress` is called on this thread with a percentage that never falls and the stage at work: `decode`, `height`,
/// `mesh`, `texture`, `preview`, `pack`, at least once each, and at last with 100.
///
/// # Errors
/// [`Fault::Io`] when the file cannot be read; every other [`Fault`] when the input is at fault.
pub fn make(path: &Path, params: &Params, progress: &mut dyn FnMut(u8, &'static str)) -> Result<Model, Fault> {
    params.check()?;
    progress(1, "decode");
    // Decoding takes most of the time of a large picture, so it has the longest stretch of the scale.
    let picture = decode::decode(path, &mut |done| progress(1 + (done * 44.0) as u8, "decode"))?;

    progress(50, "height");
    let heights = height::heights(&picture, params);
    progress(58, "mesh");
    let mesh = mesh::build(&heights, params);

    progress(66, "texture");
    let texture = texture::encode(&picture)?;
    progress(74, "preview");
    let preview_png = preview::render(&mesh, &heights, &picture)?;

    progress(92, "pack");
    let glb = glb::pack(&mesh, &texture);
    progress(100, "pack");
    Ok(Model { glb, preview_png, triangles: mesh.triangles.len() as u64, vertices: mesh.positions.len() as u64 })
}
