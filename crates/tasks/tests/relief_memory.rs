//! How much memory the provider `relief` takes: its own test program, since the allocator counts for a whole process.

#![allow(clippy::unwrap_used, reason = "everything here is a test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::BufWriter;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use tasks::providers::relief::{self, Params};

/// Counts the bytes that are held and remembers the most there ever were.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged; counting touches nothing but two atomics. The
// default `realloc` and `alloc_zeroed` go through `alloc` and `dealloc` here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc::alloc`, which is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the pointer came from `alloc` above with this layout, and so from the system's allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most MiB held at once while a relief is made of the file, beyond what was held before.
fn peak_mib(path: &Path, params: &Params) -> usize {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    relief::make(path, params, &mut |_, _| {}).unwrap();
    (PEAK.load(Ordering::Relaxed) - before) >> 20
}

/// One test and not several, since what runs beside it would be counted too.
#[test]
fn large_pictures_leave_most_of_the_childs_400_mib_free() {
    let directory = tempfile::tempdir().unwrap();

    // 90 megapixels of 16-bit RGBA, 720 MB once decoded: only by rows.
    let png = directory.path().join("png");
    let mut encoder = png::Encoder::new(BufWriter::new(std::fs::File::create(&png).unwrap()), 10_000, 9_000);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Sixteen);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header().unwrap();
    let mut rows = writer.stream_writer().unwrap();
    let row = vec![0x7f; 80_000];
    for _ in 0..9_000 {
        std::io::Write::write_all(&mut rows, &row).unwrap();
    }
    rows.finish().unwrap();
    drop(writer);
    let peak = peak_mib(&png, &Params::default());
    assert!(peak < 100, "{peak} MiB for a PNG of 90 megapixels");

    let jpeg = directory.path().join("jpeg");
    let pixels: Vec<u8> = (0..6000 * 4000).flat_map(|i| [(i % 251) as u8, (i / 6000 % 249) as u8, 90]).collect();
    let file = BufWriter::new(std::fs::File::create(&jpeg).unwrap());
    JpegEncoder::new(file).encode(&pixels, 6000, 4000, ExtendedColorType::Rgb8).unwrap();
    drop(pixels);
    let peak = peak_mib(&jpeg, &Params::default());
    assert!(peak < 150, "{peak} MiB for a JPEG of 24 megapixels");
    let peak = peak_mib(&jpeg, &Params { samples: 1024, ..Params::default() });
    assert!(peak < 250, "{peak} MiB for the finest mesh");
}
