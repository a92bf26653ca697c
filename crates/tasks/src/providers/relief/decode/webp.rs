//! WebP: lossy, lossless, with alpha, and the first frame of an animation. The format cannot be decoded by rows.

use image_webp::{DecodingError, WebPDecoder};
use std::io::{Read as _, Seek as _};

use super::{Extent, Fault, Source, orientation, pour, read_fault};
use crate::providers::relief::picture::{Picture, Shrink};

/// Bound on one allocation for metadata, in bytes.
const METADATA_BYTES_MAX: usize = 16 << 20;

pub(super) fn decode(mut source: Source, file_bytes: u64, report: &mut dyn FnMut(f32)) -> Result<Picture, Fault> {
    let mut header = [0; 8];
    source.read_exact(&mut header).map_err(read_fault)?;
    source.rewind()?;
    let [_, _, _, _, riff @ ..] = header;
    let stated_bytes = u64::from(u32::from_le_bytes(riff)) + 8;
    if file_bytes < stated_bytes {
        return Err(Fault::Truncated(format!("the WebP says {stated_bytes} bytes, but {file_bytes} are there")));
    }

    let mut decoder = WebPDecoder::new(source).map_err(fault)?;
    decoder.set_memory_limit(METADATA_BYTES_MAX);
    let (width, height) = decoder.dimensions();
    let channels = if decoder.has_alpha() { 4 } else { 3 };
    let extent = Extent::new(width, height);
    extent.check()?;
    // What the decoder holds beside the pixels it hands out: an animation's canvas and frame; a lossy picture's planes
    // of brightness and colour, and of alpha; a lossless one's own RGBA copy when the result has no alpha.
    let planes_bytes = match (decoder.is_animated(), decoder.is_lossy(), decoder.has_alpha()) {
        (true, ..) => extent.pixels() * 10,
        (_, true, false) => extent.pixels() * 3 / 2,
        (_, true, true) => extent.pixels() * 5 / 2,
        (_, false, false) => extent.pixels() * 4,
        (_, false, true) => 0,
    };
    let bytes = extent.pixels() * channels;
    extent.check_whole(bytes, bytes + planes_bytes)?;
    report(0.02);

    // A block that is missing or cannot be read only loses the turn it might have asked for.
    let exif = decoder.exif_metadata().ok().flatten();
    let mut pixels = vec![0; bytes as usize];
    decoder.read_image(&mut pixels).map_err(fault)?;
    report(0.75);
    let mut shrink = Shrink::new(width, height);
    pour(&mut shrink, &pixels, width as usize, channels as usize, 0.75, report);
    Ok(shrink.finish(orientation(exif.as_deref())))
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) => read_fault(error),
        other => Fault::Truncated(format!("the WebP decoder says: {other}")),
    }
}
