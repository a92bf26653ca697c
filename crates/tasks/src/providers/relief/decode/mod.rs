//! From a file to a [`Picture`]: looks at the first bytes for the format, never at the name, holds the stated size
//! against the limits, and only then decodes.
//!
//! Colour profiles are not applied: samples are taken for sRGB, which is what nearly every picture on the web is, and
//! so an odd or broken profile cannot spoil a model.

mod gif;
mod jpeg;
mod jpeg_markers;
mod png;
mod source;
mod webp;

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _};
use std::path::Path;

use image::metadata::Orientation;

use super::Fault;
use super::picture::{Picture, Shrink};
use source::Source;

/// Most pixels of a picture.
const PIXELS_MAX: u64 = 100_000_000;
/// Longest side of a picture, in pixels: that of JPEG and GIF. It keeps one row small.
const ROW_PIXELS_MAX: u64 = 65_535;
/// Most bytes of a decoded picture that has to stand in memory whole.
const WHOLE_BYTES_MAX: u64 = 256 << 20;
/// Most bytes that decoding may hold at once, its own planes and coefficients among them: what the child's 400 MiB
/// leave beside the program itself, the working picture and some slack.
const WORKING_BYTES_MAX: u64 = 300 << 20;

/// Decodes the picture at `path`; `report` is told the share done, 0 to 1, as it grows.
pub(super) fn decode(path: &Path, report: &mut dyn FnMut(f32)) -> Result<Picture, Fault> {
    let file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut source = Source::new(file);
    let mut start = Vec::new();
    source.by_ref().take(64).read_to_end(&mut start)?;
    source.rewind()?;

    match start.as_slice() {
        [] => Err(Fault::Empty),
        [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => png::decode(source, report),
        [0xff, 0xd8, 0xff, ..] => jpeg::decode(source, report),
        [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => gif::decode(source, report),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => webp::decode(source, file_bytes, report),
        other => Err(refusal(other)),
    }
}

/// Says what the bytes look like instead of a picture that is taken.
fn refusal(start: &[u8]) -> Fault {
    const TAKEN: &str = "PNG, JPEG, WebP and GIF are";
    let other = match start {
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "TIFF",
        [b'B', b'M', ..] if start.len() > 25 && start[6..10] == [0; 4] => "BMP",
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => "AVIF",
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => "HEIC",
        [0, 0, 0, 12, b'J', b'X', b'L', b' ', ..] | [0xff, 0x0a, ..] => "JPEG XL",
        [b'%', b'P', b'D', b'F', ..] => {
            return Fault::NotAPicture(format!("it is a PDF document; {TAKEN} taken"));
        }
        [b'P', b'K', 3, 4, ..] => {
            return Fault::NotAPicture(format!("it is a zip archive; {TAKEN} taken"));
        }
        _ => {
            // Text may be cut within a character, and then the part before it is judged.
            let is_text = match str::from_utf8(start) {
                Ok(_) => true,
                Err(error) => error.error_len().is_none() && error.valid_up_to() > 0,
            };
            let has_controls = start.iter().any(|&byte| byte < b' ' && !matches!(byte, b'\t' | b'\n' | b'\r'));
            let looks = if is_text && !has_controls {
                "it looks like text"
            } else {
                "its first bytes belong to no known format"
            };
            return Fault::NotAPicture(format!("{looks}; {TAKEN} taken"));
        }
    };
    Fault::Unsupported(format!("{other}; {TAKEN} taken"))
}

/// What a header says that a picture will take.
struct Extent {
    width: u64,
    height: u64,
}

impl Extent {
    fn new(width: impl Into<u64>, height: impl Into<u64>) -> Self {
        Self { width: width.into(), height: height.into() }
    }

    fn pixels(&self) -> u64 {
        self.width.saturating_mul(self.height)
    }

    /// The limits that hold for every picture, decoded by rows or not.
    ///
    /// # Errors
    /// [`Fault::TooLarge`], or [`Fault::Truncated`] when a side is 0.
    fn check(&self) -> Result<(), Fault> {
        if self.pixels() == 0 {
            return Err(Fault::Truncated(format!("its header says {} x {} pixels", self.width, self.height)));
        }
        if self.pixels() > PIXELS_MAX {
            let megapixels = self.pixels() as f64 / 1e6;
            return Err(self.too_large(format!("{megapixels:.1} megapixels; at most 100 are taken")));
        }
        if self.width.max(self.height) > ROW_PIXELS_MAX {
            return Err(self.too_large(format!("and a side may have at most {ROW_PIXELS_MAX}")));
        }
        Ok(())
    }

    /// The further limits of a picture that cannot be decoded by rows.
    ///
    /// # Errors
    /// [`Fault::TooLarge`] when the decoded picture or all that decoding holds at once is too much.
    fn check_whole(&self, decoded_bytes: u64, working_bytes: u64) -> Result<(), Fault> {
        for (bytes, bytes_max, what) in
            [(decoded_bytes, WHOLE_BYTES_MAX, "once decoded"), (working_bytes, WORKING_BYTES_MAX, "while decoding")]
        {
            if bytes > bytes_max {
                let mib = bytes.div_ceil(1 << 20);
                let mib_max = bytes_max >> 20;
                return Err(self.too_large(format!(
                    "{mib} MiB {what}; at most {mib_max} MiB are taken where the format cannot be decoded by rows"
                )));
            }
        }
        Ok(())
    }

    fn too_large(&self, reason: String) -> Fault {
        Fault::TooLarge { width: self.width, height: self.height, reason }
    }
}

/// The fault of an error that arose while reading: an early end is the picture's, anything else is the disk's.
fn read_fault(error: std::io::Error) -> Fault {
    match error.kind() {
        ErrorKind::UnexpectedEof => Fault::Truncated("the file ends before the picture does".to_owned()),
        // The decoders pass their own complaints on in this dress.
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => Fault::Truncated(error.to_string()),
        _ => Fault::Io(error),
    }
}

/// The turn that an EXIF block asks for. A block that cannot be read asks for none.
fn orientation(exif: Option<&[u8]>) -> Orientation {
    exif.map(|exif| exif.strip_prefix(b"Exif\0\0").unwrap_or(exif))
        .and_then(Orientation::from_exif_chunk)
        .unwrap_or(Orientation::NoTransforms)
}

/// Pours a whole decoded 8-bit picture into the funnel and reports from `from` up to 1.
fn pour(
    shrink: &mut Shrink,
    pixels: &[u8],
    row_pixels: usize,
    channels: usize,
    from: f32,
    report: &mut dyn FnMut(f32),
) {
    for (y, row) in pixels.chunks_exact(row_pixels * channels).enumerate() {
        shrink.row8(row, channels);
        if y % 256 == 255 {
            report(from + (1.0 - from) * shrink.done());
        }
    }
}
