//! Every kind of picture that is taken gives the heights that its pixels say.

use image::ExtendedColorType::{L8, L16, La8, Rgb8, Rgba8};
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::codecs::webp::WebPEncoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageEncoder};

use super::glb::Glb;
use super::pictures::{self, GREYS, HEIGHT, TileJpeg, WIDTH, quadrant, quadrants};
use super::{coarse, fixture, make};

/// Fails unless the picture's relief has these heights, told in greys, in the middles of its quarters.
#[track_caller]
fn assert_quadrants(picture: &[u8], greys: [u8; 4], tolerance: u8, what: &str) {
    let glb = Glb::read(&make(picture, &coarse()).unwrap_or_else(|fault| panic!("{what}: {fault}")).glb);
    glb.assert_watertight();
    let found = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
        .map(|(right, down)| (glb.height_at(right, down) / 0.008 * 255.0).round() as i32);
    for (found, grey) in found.into_iter().zip(greys) {
        assert!((found - i32::from(grey)).abs() <= i32::from(tolerance), "{what}: {found} where {grey} was drawn");
    }
}

#[test]
fn png_of_every_depth_and_kind() {
    let grey = quadrants();
    let each = |colour: fn(u8) -> Vec<u8>| grey.iter().flat_map(|&grey| colour(grey)).collect::<Vec<u8>>();
    let encode = |pixels: &[u8], color| pictures::png(pixels, WIDTH, HEIGHT, color);
    assert_quadrants(&encode(&grey, L8), GREYS, 0, "8-bit grey");
    assert_quadrants(&encode(&each(|grey| vec![grey; 3]), Rgb8), GREYS, 1, "8-bit RGB");
    assert_quadrants(&encode(&each(|grey| vec![grey, 255]), La8), GREYS, 1, "8-bit grey and alpha");
    let wide: Vec<u8> = grey.iter().flat_map(|&grey| (u16::from(grey) * 257).to_ne_bytes()).collect();
    assert_quadrants(&encode(&wide, L16), GREYS, 0, "16-bit grey");
    assert_quadrants(&pictures::interlaced_png(&grey), GREYS, 0, "interlaced");

    let mut info = png::Info::with_size(WIDTH, HEIGHT);
    (info.color_type, info.bit_depth) = (png::ColorType::Indexed, png::BitDepth::Two);
    info.palette = Some(GREYS.iter().flat_map(|&grey| [grey; 3]).collect());
    let row = |y: u32| {
        let index = move |x: u32| GREYS.iter().position(|&grey| grey == quadrant(x, y)).unwrap() as u8;
        std::iter::once(0).chain((0..WIDTH).step_by(4).map(move |x| index(x) * 0b0101_0101))
    };
    let rows: Vec<u8> = (0..HEIGHT).flat_map(row).collect();
    assert_quadrants(&pictures::raw_png(info.clone(), &pictures::stored(&rows)), GREYS, 1, "palette of two bits");
    info.trns = Some([0, 255].as_slice().into());
    let [_, rest @ ..] = GREYS;
    let greys = [0, rest[0], rest[1], rest[2]];
    assert_quadrants(&pictures::raw_png(info, &pictures::stored(&rows)), greys, 1, "transparent palette entry");
}

#[test]
fn transparent_places_are_ground_and_half_transparent_ones_half_as_high() {
    let pixels: Vec<u8> = (0..HEIGHT)
        .flat_map(|y| (0..WIDTH).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let alpha = if y >= HEIGHT / 2 {
                255
            } else if x < WIDTH / 2 {
                0
            } else {
                128
            };
            [200, 200, 200, alpha]
        })
        .collect();
    let greys = [0, 100, 200, 200];
    assert_quadrants(&pictures::png(&pixels, WIDTH, HEIGHT, Rgba8), greys, 1, "PNG");
    let mut webp = Vec::new();
    WebPEncoder::new_lossless(&mut webp).write_image(&pixels, WIDTH, HEIGHT, Rgba8).unwrap();
    assert_quadrants(&webp, greys, 1, "lossless WebP");
    let [_, rest @ ..] = GREYS;
    assert_quadrants(&fixture("lossy-alpha.webp"), [0, rest[0], rest[1], rest[2]], 4, "lossy WebP");
}

/// A name, how it is coded, and a grey in its colour space.
type Kind = (&'static str, TileJpeg, fn(u8) -> [u8; 4]);

#[test]
fn jpeg_of_every_colour_space_and_coding() {
    let kinds: [Kind; 9] = [
        ("grey", TileJpeg::GREY, |grey| [grey; 4]),
        ("YCbCr", TileJpeg { components: 3, ..TileJpeg::GREY }, |grey| [grey, 128, 128, 0]),
        ("RGB", TileJpeg { components: 3, adobe: Some(0), ..TileJpeg::GREY }, |grey| [grey, grey, grey, 0]),
        ("CMYK of Adobe", TileJpeg { components: 4, adobe: Some(0), ..TileJpeg::GREY }, |grey| [255, 255, 255, grey]),
        ("YCCK of Adobe", TileJpeg { components: 4, adobe: Some(2), ..TileJpeg::GREY }, |grey| {
            [255 - grey, 128, 128, 255]
        }),
        ("plain CMYK", TileJpeg { components: 4, ..TileJpeg::GREY }, |grey| [255 - grey, 255 - grey, 255 - grey, 0]),
        ("progressive", TileJpeg { components: 3, is_progressive: true, ..TileJpeg::GREY }, |grey| [grey, 128, 128, 0]),
        ("restarts", TileJpeg { components: 3, restart: 5, ..TileJpeg::GREY }, |grey| [grey, 128, 128, 0]),
        ("a profile of nonsense", TileJpeg { icc: Some(vec![0xa5; 60_000]), ..TileJpeg::GREY }, |grey| [grey; 4]),
    ];
    for (what, kind, samples) in kinds {
        let jpeg = kind.encode(WIDTH, HEIGHT, |x, y| samples(quadrant(x, y)));
        assert_quadrants(&jpeg, GREYS, 2, what);
    }
    assert_quadrants(&fixture("progressive-420.jpg"), GREYS, 3, "progressive, a quarter of the colour");
    assert_quadrants(&fixture("baseline-422.jpg"), GREYS, 3, "baseline, half of the colour");
}

#[test]
fn webp_lossy_lossless_and_the_first_frame_of_an_animation() {
    let rgb: Vec<u8> = quadrants().iter().flat_map(|&grey| [grey; 3]).collect();
    let mut lossless = Vec::new();
    WebPEncoder::new_lossless(&mut lossless).write_image(&rgb, WIDTH, HEIGHT, Rgb8).unwrap();
    assert_quadrants(&lossless, GREYS, 1, "lossless");
    assert_quadrants(&fixture("lossy.webp"), GREYS, 4, "lossy");
    assert_quadrants(&fixture("animated.webp"), GREYS, 4, "animated");
}

#[test]
fn gif_interlaced_animated_transparent_and_smaller_than_its_canvas() {
    let palette: Vec<u8> = GREYS.iter().flat_map(|&grey| [grey; 3]).collect();
    let index = |x: u32, y: u32| GREYS.iter().position(|&grey| grey == quadrant(x, y)).unwrap() as u8;
    let straight: Vec<u32> = (0..HEIGHT).collect();
    let laced = [(0, 8), (4, 8), (2, 4), (1, 2)].map(|(first, step)| (first..HEIGHT).step_by(step));
    let laced: Vec<u32> = laced.into_iter().flatten().collect();
    let encode = |rows: &[u32], interlaced: bool, transparent: Option<u8>, top: u16| {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, WIDTH as u16, HEIGHT as u16, &palette).unwrap();
        let pixels: Vec<u8> = rows.iter().flat_map(|&y| (0..WIDTH).map(move |x| index(x, y))).collect();
        let height = rows.len() as u16;
        let frame = gif::Frame { width: WIDTH as u16, height, top, interlaced, transparent, ..gif::Frame::default() };
        encoder.write_frame(&gif::Frame { buffer: pixels.into(), ..frame.clone() }).unwrap();
        encoder.write_frame(&gif::Frame { buffer: vec![0; rows.len() * WIDTH as usize].into(), ..frame }).unwrap();
        drop(encoder);
        bytes
    };
    let [first, second, third, fourth] = GREYS;
    assert_quadrants(&encode(&straight, false, None, 0), GREYS, 1, "animated");
    assert_quadrants(&encode(&laced, true, None, 0), GREYS, 1, "interlaced");
    assert_quadrants(&encode(&straight, false, Some(2), 0), [first, second, 0, fourth], 1, "transparent colour");
    let lower = &straight[HEIGHT as usize / 2..];
    assert_quadrants(&encode(lower, false, None, HEIGHT as u16 / 2), [0, 0, third, fourth], 1, "part of the canvas");
}

#[test]
fn exif_turns_the_picture_in_every_format_that_can_carry_it() {
    for orientation in 1..=8 {
        let mut turned = DynamicImage::ImageLuma8(quadrants());
        turned.apply_orientation(Orientation::from_exif(orientation).unwrap());
        let turned = turned.into_luma8();
        let (width, height) = turned.dimensions();
        let greys = [(1, 1), (3, 1), (1, 3), (3, 3)].map(|(x, y)| turned.get_pixel(width * x / 4, height * y / 4).0[0]);

        let tiles = TileJpeg { exif: Some(orientation), ..TileJpeg::GREY };
        let jpeg = tiles.encode(WIDTH, HEIGHT, |x, y| [quadrant(x, y); 4]);
        assert_quadrants(&jpeg, greys, 2, &format!("JPEG, orientation {orientation}"));

        let mut info = png::Info::with_size(WIDTH, HEIGHT);
        (info.color_type, info.bit_depth) = (png::ColorType::Grayscale, png::BitDepth::Eight);
        info.exif_metadata = Some(pictures::exif(orientation).into());
        let rows: Vec<u8> = quadrants().chunks(WIDTH as usize).flat_map(|row| [&[0], row].concat()).collect();
        let png = pictures::raw_png(info, &pictures::stored(&rows));
        assert_quadrants(&png, greys, 0, &format!("PNG, orientation {orientation}"));

        let rgb: Vec<u8> = quadrants().iter().flat_map(|&grey| [grey; 3]).collect();
        let mut webp = Vec::new();
        let mut encoder = WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(pictures::exif(orientation)).unwrap();
        encoder.write_image(&rgb, WIDTH, HEIGHT, Rgb8).unwrap();
        assert_quadrants(&webp, greys, 1, &format!("WebP, orientation {orientation}"));
    }
}

#[test]
fn odd_profiles_and_broken_exif_change_nothing() {
    fn with_metadata(mut encoder: impl ImageEncoder, pixels: &[u8]) {
        encoder.set_icc_profile(b"no profile at all".to_vec()).unwrap();
        encoder.set_exif_metadata(b"II*\0broken".to_vec()).unwrap();
        encoder.write_image(pixels, WIDTH, HEIGHT, Rgb8).unwrap();
    }
    let rgb: Vec<u8> = quadrants().iter().flat_map(|&grey| [grey; 3]).collect();
    let [mut png, mut jpeg, mut webp] = [const { Vec::new() }; 3];
    with_metadata(PngEncoder::new(&mut png), &rgb);
    with_metadata(JpegEncoder::new_with_quality(&mut jpeg, 95), &rgb);
    with_metadata(WebPEncoder::new_lossless(&mut webp), &rgb);
    assert_quadrants(&png, GREYS, 1, "PNG");
    assert_quadrants(&jpeg, GREYS, 2, "JPEG");
    assert_quadrants(&webp, GREYS, 1, "WebP");
}

#[test]
fn what_stands_behind_the_end_of_a_jpeg_is_ignored() {
    let mut jpeg = TileJpeg::GREY.encode(WIDTH, HEIGHT, |x, y| [quadrant(x, y); 4]);
    jpeg.extend_from_slice(&TileJpeg::GREY.encode(16, 16, |_, _| [0; 4])[..60]);
    assert_quadrants(&jpeg, GREYS, 2, "a second picture, cut off");
}
