//! A picture's file is read about as often as it must be. Decoders look ahead and step back all the time, which must not
//! cost a read each.

use image::ImageEncoder as _;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::webp::WebPEncoder;
use image::{ExtendedColorType, RgbImage};

use super::{coarse, make, pictures};

/// Bytes that this thread has read so far by system calls.
fn bytes_read() -> u64 {
    let counters = std::fs::read_to_string("/proc/thread-self/io").unwrap();
    counters.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

#[test]
fn a_file_is_read_twice_at_most() {
    // Grain, so that the files are many times as long as any buffer.
    let mut state = 1_u32;
    let picture = RgbImage::from_fn(1500, 1000, |_, _| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        image::Rgb(state.to_be_bytes()[..3].try_into().unwrap())
    });
    let (width, height, color) = (picture.width(), picture.height(), ExtendedColorType::Rgb8);
    let (mut jpeg, mut webp) = (Vec::new(), Vec::new());
    JpegEncoder::new_with_quality(&mut jpeg, 95).write_image(&picture, width, height, color).unwrap();
    WebPEncoder::new_lossless(&mut webp).write_image(&picture, width, height, color).unwrap();
    let png = pictures::png(&picture, width, height, color);
    for (what, file) in [("JPEG", jpeg), ("WebP", webp), ("PNG", png)] {
        let before = bytes_read();
        make(&file, &coarse()).unwrap();
        let (read, bytes) = (bytes_read() - before, file.len() as u64);
        let slack = 512 << 10;
        assert!(read <= 2 * bytes + slack, "{what}: {read} bytes were read of a file of {bytes}");
    }
}
