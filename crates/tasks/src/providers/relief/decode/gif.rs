//! GIF: the first frame, on its canvas, which is transparent where the frame does not cover it.

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use super::{Extent, Fault, Source, orientation, read_fault};
use crate::providers::relief::picture::{Picture, Shrink};

pub(super) fn decode(source: Source, report: &mut dyn FnMut(f32)) -> Result<Picture, Fault> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // The frame's size is held against our own limits below, before its pixels are asked for.
    options.set_memory_limit(MemoryLimit::Unlimited);
    let mut decoder = options.read_info(source).map_err(fault)?;
    let extent = Extent::new(decoder.width(), decoder.height());
    extent.check()?;

    let frame = decoder.next_frame_info().map_err(fault)?;
    let frame = frame.ok_or_else(|| Fault::Truncated("the GIF has no frame".to_owned()))?;
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let (frame_width, frame_height) = (usize::from(frame.width), usize::from(frame.height));
    let transparent = frame.transparent;
    Extent::new(frame.width, frame.height).check()?;
    report(0.05);

    // One byte a pixel, and so never above 100 MB; the decoder puts interlaced rows in order.
    let mut indices = vec![0; frame_width * frame_height];
    decoder.read_into_buffer(&mut indices).map_err(fault)?;
    report(0.6);
    let mut colours = [[0; 4]; 256];
    let (palette, _) = decoder.palette().map_err(fault)?.as_chunks::<3>();
    for (colour, &[r, g, b]) in colours.iter_mut().zip(palette) {
        *colour = [r, g, b, 255];
    }
    if let Some(index) = transparent {
        colours[usize::from(index)] = [0; 4];
    }

    let (width, height) = (usize::from(decoder.width()), usize::from(decoder.height()));
    let mut shrink = Shrink::new(width as u32, height as u32);
    let mut row = vec![[0; 4]; width];
    for y in 0..height {
        row.fill([0; 4]);
        if let Some(frame_y) = y.checked_sub(top).filter(|&y| y < frame_height) {
            let indices = &indices[frame_y * frame_width..][..frame_width];
            for (pixel, &index) in row.iter_mut().skip(left).zip(indices) {
                *pixel = colours[usize::from(index)];
            }
        }
        shrink.row8(row.as_flattened(), 4);
        if y % 256 == 255 {
            report(0.6 + 0.4 * shrink.done());
        }
    }
    Ok(shrink.finish(orientation(None)))
}

fn fault(error: DecodingError) -> Fault {
    match error {
        DecodingError::Io(error) => read_fault(error),
        DecodingError::UnexpectedEof => Fault::Truncated("the GIF file ends before its first frame does".to_owned()),
        other => Fault::Truncated(format!("the GIF decoder says: {other}")),
    }
}
