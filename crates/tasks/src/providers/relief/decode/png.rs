//! PNG: by rows, so that 100 megapixels of 16-bit RGBA need no more memory than a thumbnail; interlaced pictures, whose
//! rows come in seven passes, as a whole.

use png::{BitDepth, Decoder, DecodingError, Limits, Reader, Transformations};

use super::{Extent, Fault, Source, orientation, read_fault};
use crate::providers::relief::picture::{Picture, Shrink};

/// Bound on what the decoder keeps of chunks beside the pixels, in bytes.
const METADATA_BYTES_MAX: usize = 16 << 20;

pub(super) fn decode(source: Source, report: &mut dyn FnMut(f32)) -> Result<Picture, Fault> {
    let mut decoder = Decoder::new_with_limits(source, Limits { bytes: METADATA_BYTES_MAX });
    decoder.set_transformations(Transformations::EXPAND);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(fault)?;
    let (width, height, is_interlaced) = (header.width, header.height, header.interlaced);
    let extent = Extent::new(width, height);
    extent.check()?;

    let mut reader = decoder.read_info().map_err(fault)?;
    report(0.02);
    let mut shrink = Shrink::new(width, height);
    if is_interlaced {
        whole(&mut reader, &extent, &mut shrink, report)?;
    } else {
        by_rows(&mut reader, height, &mut shrink, report)?;
    }
    // Reads on to the end mark: what ends before it has lost something, and EXIF may stand behind the pixels.
    reader.finish().map_err(fault)?;
    let orientation = orientation(reader.info().exif_metadata.as_deref());
    Ok(shrink.finish(orientation))
}

fn by_rows(
    reader: &mut Reader<Source>,
    height: u32,
    shrink: &mut Shrink,
    report: &mut dyn FnMut(f32),
) -> Result<(), Fault> {
    let (color, depth) = reader.output_color_type();
    for y in 0..height {
        let row = reader.next_row().map_err(fault)?;
        let row = row.ok_or_else(|| Fault::Truncated(format!("{y} of {height} rows of pixels are there")))?;
        take(shrink, row.data(), color.samples(), depth);
        if y % 256 == 255 {
            report(shrink.done());
        }
    }
    Ok(())
}

fn whole(
    reader: &mut Reader<Source>,
    extent: &Extent,
    shrink: &mut Shrink,
    report: &mut dyn FnMut(f32),
) -> Result<(), Fault> {
    let (color, depth) = reader.output_color_type();
    let bytes = reader.output_buffer_size().map_or(u64::MAX, |bytes| bytes as u64);
    extent.check_whole(bytes, bytes)?;
    let mut pixels = vec![0; bytes as usize];
    reader.next_frame(&mut pixels).map_err(fault)?;
    report(0.8);
    for row in pixels.chunks_exact(bytes as usize / extent.height as usize) {
        take(shrink, row, color.samples(), depth);
    }
    Ok(())
}

fn take(shrink: &mut Shrink, row: &[u8], channels: usize, depth: BitDepth) {
    if depth == BitDepth::Sixteen {
        shrink.row16_be(row, channels);
    } else {
        shrink.row8(row, channels);
    }
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::IoError(error) => read_fault(error),
        DecodingError::LimitsExceeded => Fault::Unsupported("a PNG whose metadata alone is over 16 MiB".to_owned()),
        other => {
            // Behind these words the decoder prints its own structs.
            let words = other.to_string();
            let words = words.split(" while decoding").next().unwrap_or_default();
            Fault::Truncated(format!("the PNG decoder says: {words}"))
        }
    }
}
