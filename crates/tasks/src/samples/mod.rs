//! The pictures of the first-start sample batch, drawn by code, so that the project carries no picture of anyone else's.
//!
//! Each is a field of heights seen through a ramp of colours whose brightness rises with height, so that its relief is
//! the shape that the picture shows. The same build draws the same bytes.

mod noise;
mod ornaments;
mod terrains;

use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder as _};

/// A picture of the sample batch.
#[derive(Debug, Clone)]
pub struct Sample {
    /// File name with ending.
    pub name: &'static str,
    /// Its media type, `image/png` or `image/jpeg`.
    pub media_type: &'static str,
    /// The encoded picture.
    pub bytes: Vec<u8>,
}

/// How many pictures [`draw`] gives.
pub const COUNT: usize = DRAWINGS.len();

/// Draws the samples, one for each step of the iterator; a tenth of a second each or less.
pub fn draw() -> impl Iterator<Item = Sample> {
    DRAWINGS.iter().map(Drawing::encode)
}

/// Height from 0 to 1, and opacity.
#[derive(Debug, Clone, Copy)]
struct Spot {
    height: f32,
    cover: f32,
}

impl Spot {
    /// An opaque spot.
    fn at(height: f32) -> Self {
        Self { height, cover: 1.0 }
    }
}

/// A field of heights over the plane. The picture shows its middle: the shorter side runs from -1 to 1, y downward.
type Field = Box<dyn Fn(f32, f32) -> Spot>;

struct Drawing {
    name: &'static str,
    width: u32,
    height: u32,
    /// Colours of the lowest, the middle and the highest places, each brighter than the one before.
    ramp: [[u8; 3]; 3],
    is_cut_out: bool,
    field: fn() -> Field,
}

const DRAWINGS: [Drawing; 12] = [
    Drawing {
        name: "medallion.png",
        width: 840,
        height: 840,
        ramp: [[58, 36, 12], [176, 122, 46], [255, 232, 160]],
        is_cut_out: true,
        field: ornaments::medallion,
    },
    Drawing {
        name: "dunes.jpg",
        width: 1120,
        height: 760,
        ramp: [[74, 38, 26], [198, 128, 72], [255, 226, 176]],
        is_cut_out: false,
        field: terrains::dunes,
    },
    Drawing {
        name: "gear.png",
        width: 840,
        height: 840,
        ramp: [[24, 34, 46], [104, 128, 150], [232, 240, 246]],
        is_cut_out: true,
        field: ornaments::gear,
    },
    Drawing {
        name: "ripples.jpg",
        width: 1000,
        height: 800,
        ramp: [[6, 36, 60], [32, 124, 148], [214, 246, 240]],
        is_cut_out: false,
        field: terrains::ripples,
    },
    Drawing {
        name: "leaf.png",
        width: 800,
        height: 960,
        ramp: [[22, 52, 18], [84, 142, 48], [226, 240, 150]],
        is_cut_out: true,
        field: ornaments::leaf,
    },
    Drawing {
        name: "craters.jpg",
        width: 1000,
        height: 800,
        ramp: [[30, 29, 33], [122, 118, 116], [240, 236, 228]],
        is_cut_out: false,
        field: terrains::craters,
    },
    Drawing {
        name: "sunflower.jpg",
        width: 900,
        height: 900,
        ramp: [[28, 30, 16], [170, 96, 22], [255, 224, 84]],
        is_cut_out: false,
        field: ornaments::sunflower,
    },
    Drawing {
        name: "maze.png",
        width: 820,
        height: 820,
        ramp: [[66, 24, 22], [168, 76, 56], [250, 226, 206]],
        is_cut_out: false,
        field: ornaments::maze,
    },
    Drawing {
        name: "mountains.jpg",
        width: 1120,
        height: 760,
        ramp: [[18, 40, 34], [104, 104, 84], [250, 250, 252]],
        is_cut_out: false,
        field: terrains::mountains,
    },
    Drawing {
        name: "fingerprint.png",
        width: 740,
        height: 920,
        ramp: [[22, 24, 40], [104, 108, 142], [236, 236, 246]],
        is_cut_out: false,
        field: ornaments::fingerprint,
    },
    Drawing {
        name: "monogram.png",
        width: 840,
        height: 840,
        ramp: [[16, 24, 62], [92, 100, 150], [250, 244, 226]],
        is_cut_out: false,
        field: ornaments::monogram,
    },
    Drawing {
        name: "weave.jpg",
        width: 1000,
        height: 800,
        ramp: [[40, 24, 14], [156, 108, 62], [244, 216, 170]],
        is_cut_out: false,
        field: ornaments::weave,
    },
];

impl Drawing {
    fn encode(&self) -> Sample {
        let field = (self.field)();
        let half = self.width.min(self.height) as f32 / 2.0;
        let channels = if self.is_cut_out { 4 } else { 3 };
        let mut pixels = Vec::with_capacity((self.width * self.height) as usize * channels);
        for row in 0..self.height {
            for column in 0..self.width {
                let x = (column as f32 + 0.5 - self.width as f32 / 2.0) / half;
                let y = (row as f32 + 0.5 - self.height as f32 / 2.0) / half;
                let spot = field(x, y);
                pixels.extend(self.colour(spot.height));
                if self.is_cut_out {
                    pixels.push((spot.cover.clamp(0.0, 1.0) * 255.0 + 0.5) as u8);
                }
            }
        }
        let mut bytes = Vec::new();
        let media_type = if self.name.ends_with(".png") {
            let color = if self.is_cut_out { ExtendedColorType::Rgba8 } else { ExtendedColorType::Rgb8 };
            PngEncoder::new(&mut bytes)
                .write_image(&pixels, self.width, self.height, color)
                .expect("the pixels fill the picture, and a Vec takes every byte");
            "image/png"
        } else {
            JpegEncoder::new_with_quality(&mut bytes, 92)
                .encode(&pixels, self.width, self.height, ExtendedColorType::Rgb8)
                .expect("the pixels fill the picture, and a Vec takes every byte");
            "image/jpeg"
        };
        Sample { name: self.name, media_type, bytes }
    }

    fn colour(&self, height: f32) -> [u8; 3] {
        let [low, middle, high] = self.ramp;
        let place = height.clamp(0.0, 1.0) * 2.0;
        let (from, to, share) = if place < 1.0 { (low, middle, place) } else { (middle, high, place - 1.0) };
        std::array::from_fn(|channel| {
            (f32::from(from[channel]) * (1.0 - share) + f32::from(to[channel]) * share + 0.5) as u8
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_a_picture_of_its_kind_with_depth_and_drawn_the_same_each_time() {
        let mut names = std::collections::BTreeSet::new();
        for (sample, again) in draw().zip(draw()) {
            assert!(names.insert(sample.name));
            assert_eq!(sample.bytes, again.bytes, "{}", sample.name);
            let kind = image::guess_format(&sample.bytes).unwrap();
            assert_eq!(kind.to_mime_type(), sample.media_type);
            let mut grey = image::load_from_memory(&sample.bytes).unwrap().into_luma8().into_raw();
            grey.sort_unstable();
            let share = grey.len() / 50;
            let span = grey[grey.len() - share] - grey[share];
            assert!(span > 80, "{} spans {span} greys only", sample.name);
        }
        assert_eq!(names.len(), COUNT);
    }

    #[test]
    fn ramps_rise_in_brightness() {
        for drawing in &DRAWINGS {
            let luma = drawing.ramp.map(|[r, g, b]| 2 * u32::from(r) + 7 * u32::from(g) + u32::from(b));
            assert!(luma.is_sorted(), "{}", drawing.name);
        }
    }
}
