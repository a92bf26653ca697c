//! The body that is made: closed, true to the picture, obedient to every parameter, the same each time.

use image::{ExtendedColorType, GrayImage, ImageFormat};
use tasks::providers::relief::{self, Params};

use super::glb::Glb;
use super::pictures::{self, landscape};
use super::{coarse, make};

fn landscape_png() -> Vec<u8> {
    let picture = landscape(300, 200);
    pictures::png(&picture, 300, 200, ExtendedColorType::Rgb8)
}

fn relief_of(picture: &[u8], params: &Params) -> Glb {
    let model = make(picture, params).unwrap();
    let glb = Glb::read(&model.glb);
    assert_eq!((model.triangles, model.vertices), (glb.triangles.len() as u64, glb.positions.len() as u64));
    glb.assert_watertight();
    glb
}

/// Ranks from 0, the mean of their places for equal values.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    for run in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = start as f64 + (run.len() - 1) as f64 / 2.0;
        run.iter().for_each(|&place| ranks[place] = mean);
        start += run.len();
    }
    ranks
}

/// Spearman's correlation of ranks.
fn rank_correlation(a: &[f32], b: &[f32]) -> f64 {
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() - 1) as f64 / 2.0;
    let sum = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    sum(&a, &b) / (sum(&a, &a) * sum(&b, &b)).sqrt()
}

/// Correlation of the heights with the greys of the pixels that the texture coordinates point at.
fn correlation_with(picture: &GrayImage, glb: &Glb) -> f64 {
    let (mut heights, mut greys) = (Vec::new(), Vec::new());
    for (vertex, place) in glb.relief() {
        let [u, v] = glb.uvs[vertex];
        let pixel = |share: f32, side: u32| ((share * side as f32) as u32).min(side - 1);
        heights.push(place[2]);
        greys.push(f32::from(picture.get_pixel(pixel(u, picture.width()), pixel(v, picture.height())).0[0]));
    }
    rank_correlation(&heights, &greys)
}

#[test]
fn heights_rank_as_brightness_does() {
    let picture = landscape(300, 200);
    let grey = image::DynamicImage::ImageRgb8(picture.clone()).into_luma8();
    let png = pictures::png(&picture, 300, 200, ExtendedColorType::Rgb8);
    for samples in [48, 256, 700] {
        let correlation = correlation_with(&grey, &relief_of(&png, &Params { samples, ..Params::default() }));
        assert!(correlation > 0.98, "{correlation} at {samples} samples");
    }
    let inverted = correlation_with(&grey, &relief_of(&png, &Params { invert: true, ..Params::default() }));
    assert!(inverted < -0.98, "{inverted}");
}

#[test]
fn the_body_stands_as_promised_in_metres_upright_and_facing_forward() {
    // White at the top right, black elsewhere.
    let corner = GrayImage::from_fn(200, 100, |x, y| image::Luma([if x > 150 && y < 40 { 255 } else { 0 }]));
    let glb = relief_of(&pictures::png(&corner, 200, 100, ExtendedColorType::L8), &Params::default());
    let near = |(low, high): (f32, f32), expected: (f32, f32)| {
        assert!((low - expected.0).abs() < 1e-6 && (high - expected.1).abs() < 1e-6, "{low} to {high}");
    };
    near(glb.span(0), (-0.05, 0.05));
    near(glb.span(1), (-0.025, 0.025));
    near(glb.span(2), (-0.002, 0.008));
    for (_, [x, y, z]) in glb.relief() {
        assert!((0.0..=0.008).contains(&z));
        assert!(z < 0.004 || (x > 0.02 && y > 0.0), "white stands at {x}, {y}");
    }
    let accessor = &glb.json["accessors"][0];
    for axis in 0..3 {
        let (low, high) = glb.span(axis);
        assert_eq!(accessor["min"][axis].as_f64(), Some(f64::from(low)));
        assert_eq!(accessor["max"][axis].as_f64(), Some(f64::from(high)));
    }
}

#[test]
fn each_parameter_changes_what_it_names_and_nothing_else() {
    let png = landscape_png();
    let plain = coarse();
    let base = relief_of(&png, &plain);
    let size = |glb: &Glb, axis| glb.span(axis).1 - glb.span(axis).0;
    let near = |a: f32, b: f32| assert!((a - b).abs() < 2e-6, "{a} is not {b}");
    let heights = |glb: &Glb| glb.relief().map(|(_, place)| place[2]).collect::<Vec<f32>>();

    let larger = relief_of(&png, &Params { size_mm: 250.0, ..plain.clone() });
    near(size(&larger, 0), 0.25);
    near(size(&larger, 1), size(&base, 1) * 2.5);
    assert_eq!(heights(&larger), heights(&base));

    let deeper = relief_of(&png, &Params { depth_mm: 24.0, ..plain.clone() });
    heights(&deeper).iter().zip(heights(&base)).for_each(|(&deep, height)| near(deep, 3.0 * height));
    near(size(&deeper, 0), size(&base, 0));

    let thicker = relief_of(&png, &Params { base_mm: 5.0, ..plain.clone() });
    near(thicker.span(2).0, -0.005);
    assert_eq!(heights(&thicker), heights(&base));

    let finer = relief_of(&png, &Params { samples: 66, ..plain.clone() });
    assert_eq!((base.relief().count(), finer.relief().count()), (33 * 22, 66 * 44));
    near(size(&finer, 0), size(&base, 0));

    let inverted = relief_of(&png, &Params { invert: true, ..plain.clone() });
    heights(&inverted).iter().zip(heights(&base)).for_each(|(&turned, height)| near(turned, 0.008 - height));

    let roughness = |smoothing: f64| {
        let heights = heights(&relief_of(&png, &Params { smoothing, ..plain.clone() }));
        let rows = heights.chunks(33).flat_map(|row| row.windows(2).map(|pair| (pair[0] - pair[1]).abs()));
        rows.sum::<f32>()
    };
    let roughnesses = [0.0, 1.0, 3.0, 10.0].map(roughness);
    assert!(roughnesses.is_sorted_by(|rough, smooth| smooth < rough), "{roughnesses:?}");
}

#[test]
fn inverting_leaves_transparent_places_on_the_ground() {
    let pixels: Vec<u8> = (0..64 * 64).flat_map(|i| [0, 0, 0, if i % 64 < 32 { 0 } else { 255 }]).collect();
    let png = pictures::png(&pixels, 64, 64, ExtendedColorType::Rgba8);
    let glb = relief_of(&png, &Params { invert: true, ..coarse() });
    assert_eq!(glb.height_at(0.2, 0.5), 0.0);
    assert!((glb.height_at(0.8, 0.5) - 0.008).abs() < 1e-6);
}

#[test]
fn every_shape_of_picture_gives_a_closed_body_of_its_proportions() {
    for (width, height) in [(1, 1), (1, 5000), (5000, 1), (2, 2), (3, 2), (17, 31), (2049, 3), (1, 65_535)] {
        let picture = GrayImage::from_fn(width, height, |x, y| image::Luma([((x * 7 + y * 13) % 256) as u8]));
        let png = pictures::png(&picture, width, height, ExtendedColorType::L8);
        for samples in [16, 200] {
            let glb = relief_of(&png, &Params { samples, ..Params::default() });
            let size = |axis| glb.span(axis).1 - glb.span(axis).0;
            let (found, drawn) = (size(0) / size(1), width as f32 / height as f32);
            assert!((found / drawn - 1.0).abs() < 1e-3, "{width} x {height}: {found}");
            assert!((size(0).max(size(1)) - 0.1).abs() < 1e-6);
        }
    }
}

#[test]
fn the_texture_is_a_plain_jpeg_of_at_most_2048_pixels_that_shows_the_picture() {
    let picture = landscape(2600, 1300);
    let glb = relief_of(&pictures::png(&picture, 2600, 1300, ExtendedColorType::Rgb8), &coarse());
    let texture = image::load_from_memory_with_format(&glb.texture, ImageFormat::Jpeg).unwrap().into_rgb8();
    assert_eq!(texture.dimensions(), (1300, 650));
    for (x, y) in [(100, 100), (640, 320), (1200, 600)] {
        let (found, drawn) = (texture.get_pixel(x, y).0, picture.get_pixel(2 * x, 2 * y).0);
        assert!(found.iter().zip(drawn).all(|(&found, drawn)| found.abs_diff(drawn) < 12), "{found:?} for {drawn:?}");
    }
    assert!(!glb.texture.windows(11).any(|window| window == b"ICC_PROFILE"));
    let upper_left = glb.relief().min_by(|(_, a), (_, b)| (a[0] - a[1]).total_cmp(&(b[0] - b[1]))).unwrap().0;
    assert_eq!(glb.uvs[upper_left], [0.0, 0.0]);
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let png = landscape_png();
    let [first, second] = [(); 2].map(|()| make(&png, &Params::default()).unwrap());
    assert_eq!(first.glb, second.glb);
    assert_eq!(first.preview_png, second.preview_png);
}

#[test]
fn the_preview_is_512_pixels_square_and_shows_the_model_before_a_quiet_background() {
    let preview = make(&landscape_png(), &Params::default()).unwrap().preview_png;
    let preview = image::load_from_memory_with_format(&preview, ImageFormat::Png).unwrap().into_rgb8();
    assert_eq!(preview.dimensions(), (512, 512));
    let spread = |x: u32, y: u32| {
        let window = image::imageops::crop_imm(&preview, x, y, 60, 60).to_image();
        let greys = window.pixels().map(|pixel| pixel.0[1]);
        greys.clone().max().unwrap() - greys.min().unwrap()
    };
    assert!(spread(2, 2) < 12, "the corner is not quiet");
    assert!(spread(226, 226) > 60, "the middle shows nothing");
}

#[test]
fn progress_rises_through_every_stage_to_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("picture");
    std::fs::write(&path, landscape_png()).unwrap();
    let mut calls = Vec::new();
    relief::make(&path, &coarse(), &mut |percent, stage| calls.push((percent, stage))).unwrap();
    assert!(calls.is_sorted_by_key(|&(percent, _)| percent), "{calls:?}");
    assert_eq!(calls.last().unwrap().0, 100);
    let mut stages: Vec<&str> = calls.iter().map(|&(_, stage)| stage).collect();
    stages.dedup();
    assert_eq!(stages, ["decode", "height", "mesh", "texture", "preview", "pack"]);
    let mut percents: Vec<u8> = calls.iter().map(|&(percent, _)| percent).collect();
    percents.dedup();
    assert!(percents.len() >= 5);
}
