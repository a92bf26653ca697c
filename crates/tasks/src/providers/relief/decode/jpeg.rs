//! JPEG: baseline, extended and progressive; grey, YCbCr, RGB, CMYK and YCCK, with Adobe's inverted ink and without.
//!
//! The decoder is `zune-jpeg`, the one that `image` uses, called directly: only so can its output be chosen (grey stays
//! one byte a pixel, ink without an Adobe marker can be told from ink with one) and damage be an error. What it cannot see
//! is missing data in a file that has its end mark all the same: such a picture ends in grey.

use std::io::Seek as _;

use zune_core::colorspace::ColorSpace;
use zune_core::options::DecoderOptions;
use zune_jpeg::JpegDecoder;
use zune_jpeg::errors::DecodeErrors;

use super::jpeg_markers::Markers;
use super::{Extent, Fault, Source, orientation, pour};
use crate::providers::relief::picture::{Picture, Shrink};

pub(super) fn decode(mut source: Source, report: &mut dyn FnMut(f32)) -> Result<Picture, Fault> {
    let markers = Markers::read(&mut source)?;
    source.rewind()?;

    // Adobe's inverted ink is what the decoder takes every ink for, so only plain ink is fetched as it is.
    let is_plain_ink = markers.sampling.len() == 4 && !markers.is_adobe;
    let (space, channels) = match markers.sampling.len() {
        1 => (ColorSpace::Luma, 1),
        4 if is_plain_ink => (ColorSpace::CMYK, 4),
        _ => (ColorSpace::RGB, 3),
    };
    let extent = Extent::new(markers.width, markers.height);
    extent.check()?;
    let bytes = extent.pixels() * channels;
    let coefficient_bytes = if markers.has_many_scans { markers.coefficient_bytes() } else { 0 };
    extent.check_whole(bytes, bytes + coefficient_bytes)?;
    report(0.05);

    let mut pixels = vec![0; bytes as usize];
    let options = DecoderOptions::default()
        .set_max_width(usize::from(u16::MAX))
        .set_max_height(usize::from(u16::MAX))
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(space);
    JpegDecoder::new_with_options(source, options).decode_into(&mut pixels).map_err(|error| fault(&error))?;
    report(0.75);
    if is_plain_ink {
        mix_inks(&mut pixels);
        let rgb_bytes = pixels.len() / 4 * 3;
        pixels.truncate(rgb_bytes);
    }

    let mut shrink = Shrink::new(markers.width.into(), markers.height.into());
    let channels = if is_plain_ink { 3 } else { channels as usize };
    pour(&mut shrink, &pixels, markers.width.into(), channels, 0.75, report);
    Ok(shrink.finish(orientation(markers.exif.as_deref())))
}

/// Turns ink (0 none, 255 full) into RGB in place, three bytes a pixel from the front on: each ink takes its share of
/// its colour away, black of all three.
fn mix_inks(pixels: &mut [u8]) {
    for i in 0..pixels.len() / 4 {
        let [c, m, y, k] = [0, 1, 2, 3].map(|ink| 255 - u32::from(pixels[4 * i + ink]));
        for (channel, paper) in [c, m, y].into_iter().enumerate() {
            pixels[3 * i + channel] = ((paper * k + 127) / 255) as u8;
        }
    }
}

fn fault(error: &DecodeErrors) -> Fault {
    match error {
        DecodeErrors::Unsupported(scheme) => Fault::Unsupported(format!("a JPEG with {scheme:?}")),
        other => Fault::Truncated(format!("the JPEG decoder says: {}", sentence(&format!("{other:?}")))),
    }
}

/// The decoder's own words, which come quoted and may run over lines, as one line.
fn sentence(words: &str) -> String {
    words.replace("\\n", " ").split_whitespace().collect::<Vec<_>>().join(" ").replace('"', "")
}
