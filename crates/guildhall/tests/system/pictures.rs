//! Pictures as people have them: of every kind that is taken, scaled, cropped, turned and encoded in many ways. Made of
//! the photographs beside the checkout where they are there (`GUILDHALL_TEST_PHOTOGRAPHS` names another folder), else
//! of the samples that Guildhall draws.

use std::{fs, path::PathBuf};

use image::{
    DynamicImage, ExtendedColorType, ImageEncoder as _, ImageFormat, Rgb, RgbImage,
    codecs::{gif::GifEncoder, png::PngEncoder, webp::WebPEncoder},
    imageops::FilterType,
};
use jpeg_encoder::{ColorType, Encoder};

use crate::variable;

/// The number of ways to encode below.
const WAYS: usize = 12;

/// Longest side, in pixels, of a picture of 24 megapixels with sides as 3 to 2.
const LARGE: u32 = 6000;

/// `count` pictures with their names, each from another source or in another way than the ones before.
pub(crate) fn draw(count: usize) -> impl Iterator<Item = (String, Vec<u8>)> {
    let sources = sources();
    (0..count).map(move |number| {
        let (name, picture) = &sources[number % sources.len()];
        // Another part of the picture each time the sources are through.
        let round = u32::try_from(number / sources.len()).unwrap_or(0);
        let way = number % WAYS;
        let longest = match number {
            // One in every fifty is as large as a good camera's.
            number if number % 50 == 9 => LARGE,
            number => 300 + 100 * u32::try_from(number % 9).unwrap_or(0),
        };
        let picture = picture.crop_imm(round * 3, round * 2, picture.width() - round * 5, picture.height() - round * 4);
        let picture = picture.resize(longest, longest, FilterType::Triangle);
        let (ending, bytes) = encode(&picture, way);
        (format!("{number:03} {name} ({way}).{ending}"), bytes)
    })
}

/// What is no picture, or none that is taken: its name, its bytes, and a word that the error must hold.
pub(crate) fn bad() -> Vec<(&'static str, Vec<u8>)> {
    let (_, jpeg) = encode(&gradient(), 0);
    vec![
        ("truncated.jpg", jpeg[..jpeg.len() / 2].to_vec()),
        ("text.png", b"This is no picture, whatever its name says.".to_vec()),
        ("enormous.png", enormous_png()),
        ("empty.png", Vec::new()),
    ]
}

/// From dark to bright and with something to see.
pub(crate) fn gradient() -> DynamicImage {
    RgbImage::from_fn(160, 120, |x, y| {
        let ring = ((f64::from(x) - 80.0).hypot(f64::from(y) - 60.0) / 6.0).sin() * 40.0;
        let level = (f64::from(x) + f64::from(y)) * 0.75 + ring + 30.0;
        Rgb([level.clamp(0.0, 255.0) as u8; 3])
    })
    .into()
}

/// In PNG, for tests to which any picture is good enough.
pub(crate) fn small_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    gradient().write_to(&mut std::io::Cursor::new(&mut bytes), ImageFormat::Png).expect("a Vec takes every byte");
    bytes
}

fn sources() -> Vec<(String, DynamicImage)> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/samples");
    let folder = variable("GUILDHALL_TEST_PHOTOGRAPHS").map_or(beside, PathBuf::from);
    let mut photographs: Vec<_> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            Some((path.file_stem()?.to_string_lossy().into_owned(), image::open(&path).ok()?))
        })
        // Too small to be cut further.
        .filter(|(_, picture)| picture.width() > 200 && picture.height() > 150)
        .collect();
    photographs.sort_by(|(one, _), (other, _)| one.cmp(other));
    if !photographs.is_empty() {
        return photographs;
    }
    let drawn = tasks::samples::draw();
    drawn.map(|s| (s.name.to_owned(), image::load_from_memory(&s.bytes).expect("samples are pictures"))).collect()
}

fn encode(picture: &DynamicImage, way: usize) -> (&'static str, Vec<u8>) {
    let (width, height) = (picture.width(), picture.height());
    let mut bytes = Vec::new();
    let ending = match way {
        0 => {
            jpeg(picture, &mut bytes, |_| {});
            "jpg"
        }
        1 => {
            png(&mut bytes, &picture.to_rgb8(), width, height, ExtendedColorType::Rgb8);
            "png"
        }
        // Held on its side, as telephones write it.
        2 => {
            jpeg(picture, &mut bytes, |encoder| {
                encoder.add_exif_metadata(&exif_orientation(6)).expect("it is short");
            });
            "jpeg"
        }
        3 => {
            let picture = picture.to_rgb16();
            let samples: Vec<u8> = picture.iter().flat_map(|sample| sample.to_ne_bytes()).collect();
            png(&mut bytes, &samples, width, height, ExtendedColorType::Rgb16);
            "png"
        }
        4 => {
            png(&mut bytes, &picture.to_luma8(), width, height, ExtendedColorType::L8);
            "png"
        }
        5 => {
            palette_png(picture, &mut bytes);
            "png"
        }
        // Transparent toward the right.
        6 => {
            let mut picture = picture.to_rgba8();
            for (x, _, pixel) in picture.enumerate_pixels_mut() {
                pixel.0[3] = 255 - (x * 255 / width.max(1)) as u8;
            }
            png(&mut bytes, &picture, width, height, ExtendedColorType::Rgba8);
            "png"
        }
        7 => {
            let picture = picture.to_rgb8();
            WebPEncoder::new_lossless(&mut bytes)
                .write_image(&picture, width, height, ExtendedColorType::Rgb8)
                .expect("a Vec takes every byte");
            "webp"
        }
        8 => {
            let picture = picture.resize(320, 320, FilterType::Triangle).to_rgba8();
            let (width, height) = picture.dimensions();
            GifEncoder::new(&mut bytes)
                .encode(&picture, width, height, ExtendedColorType::Rgba8)
                .expect("a Vec takes every byte");
            "gif"
        }
        // Coarse first and finer later, as from the web.
        9 => {
            jpeg(picture, &mut bytes, |encoder| encoder.set_progressive(true));
            "jpg"
        }
        // In printer's inks.
        10 => {
            let inks: Vec<u8> =
                picture.to_rgb8().pixels().flat_map(|p| [255 - p[0], 255 - p[1], 255 - p[2], 0]).collect();
            let (width, height) = (side(width), side(height));
            Encoder::new(&mut bytes, 90).encode(&inks, width, height, ColorType::Cmyk).expect("a Vec takes every byte");
            "jpg"
        }
        // With a colour profile that nobody knows.
        _ => {
            jpeg(picture, &mut bytes, |encoder| {
                encoder.add_icc_profile(&[0x5A; 3000]).expect("it fits");
            });
            "jpg"
        }
    };
    (ending, bytes)
}

fn jpeg(picture: &DynamicImage, bytes: &mut Vec<u8>, prepare: impl FnOnce(&mut Encoder<&mut Vec<u8>>)) {
    let mut encoder = Encoder::new(bytes, 88);
    prepare(&mut encoder);
    let (width, height) = (side(picture.width()), side(picture.height()));
    encoder.encode(&picture.to_rgb8(), width, height, ColorType::Rgb).expect("a Vec takes every byte");
}

fn side(pixels: u32) -> u16 {
    u16::try_from(pixels).expect("no picture here is that large")
}

fn png(bytes: &mut Vec<u8>, samples: &[u8], width: u32, height: u32, colour: ExtendedColorType) {
    PngEncoder::new(bytes).write_image(samples, width, height, colour).expect("a Vec takes every byte");
}

/// Sixteen greys in a palette, four bits a pixel.
fn palette_png(picture: &DynamicImage, bytes: &mut Vec<u8>) {
    let picture = picture.to_luma8();
    let mut encoder = png::Encoder::new(bytes, picture.width(), picture.height());
    encoder.set_color(png::ColorType::Indexed);
    encoder.set_depth(png::BitDepth::Four);
    encoder.set_palette((0..16_u8).flat_map(|level| [level * 17; 3]).collect::<Vec<u8>>());
    let rows = picture.rows().flat_map(|row| {
        let levels: Vec<u8> = row.map(|pixel| (pixel[0] / 17) & 15).collect();
        levels.chunks(2).map(|pair| (pair[0] << 4) | pair.get(1).copied().unwrap_or(0)).collect::<Vec<u8>>()
    });
    let rows: Vec<u8> = rows.collect();
    let mut writer = encoder.write_header().expect("a Vec takes every byte");
    writer.write_image_data(&rows).expect("the rows fill the picture");
    writer.finish().expect("a Vec takes every byte");
}

/// Metadata whose only entry is the orientation (Exif 2.3, tag 0x0112).
fn exif_orientation(orientation: u8) -> Vec<u8> {
    let mut metadata = b"MM\0\x2A\0\0\0\x08\0\x01".to_vec();
    metadata.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]);
    metadata.extend([0, 0, 0, 0]);
    metadata
}

/// 30,000 by 30,000 pixels of one colour: 100 KB here, 900 MB once decoded.
fn enormous_png() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 30_000, 30_000);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    encoder.set_compression(png::Compression::High);
    let mut writer = encoder.write_header().expect("a Vec takes every byte");
    {
        use std::io::Write as _;
        let mut rows = writer.stream_writer().expect("a Vec takes every byte");
        for _ in 0..30_000 {
            rows.write_all(&[0; 3_750]).expect("the rows fill the picture");
        }
        rows.finish().expect("the picture is full");
    }
    writer.finish().expect("a Vec takes every byte");
    bytes
}
