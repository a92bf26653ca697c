//! Pictures drawn at test time, and encoders for the kinds that no crate at hand writes.

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, GrayImage, ImageEncoder as _, Luma, RgbImage};

pub(crate) const WIDTH: u32 = 128;
pub(crate) const HEIGHT: u32 = 96;
/// Greys of [`quadrants`]: upper left, upper right, lower left, lower right.
pub(crate) const GREYS: [u8; 4] = [250, 170, 90, 10];

/// Four greys, one a quarter, in a picture that is wider than high: so every turn of it can be told from the others.
pub(crate) fn quadrants() -> GrayImage {
    GrayImage::from_fn(WIDTH, HEIGHT, |x, y| Luma([quadrant(x, y)]))
}

pub(crate) fn quadrant(x: u32, y: u32) -> u8 {
    GREYS[usize::from(x >= WIDTH / 2) + 2 * usize::from(y >= HEIGHT / 2)]
}

/// A soft landscape with some colour in it: rings, a slope and a few bumps.
pub(crate) fn landscape(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let rings = ((u - 0.3).hypot(v - 0.4) * 24.0).cos();
        let bumps = (u * 17.0).sin() * (v * 13.0).sin();
        let light = (0.45 + 0.2 * rings + 0.15 * bumps + 0.2 * (u - v)).clamp(0.0, 1.0);
        let tint = [1.0, 0.85 + 0.15 * v, 0.75 + 0.25 * u];
        image::Rgb(tint.map(|part| (light * part * 255.0) as u8))
    })
}

pub(crate) fn png(pixels: &[u8], width: u32, height: u32, color: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes).write_image(pixels, width, height, color).unwrap();
    bytes
}

/// An EXIF block that holds an orientation and nothing else: a TIFF header and one entry.
pub(crate) fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"MM\0*\0\0\0\x08\0\x01".to_vec();
    tiff.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]);
    tiff.extend([0; 4]);
    tiff
}

/// A JPEG made of flat 8 x 8 tiles, whose greys and inks come out exactly as they go in.
pub(crate) struct TileJpeg {
    /// Components a pixel: 1, 3 or 4.
    pub(crate) components: usize,
    /// The colour transform that an Adobe marker names; none without one.
    pub(crate) adobe: Option<u8>,
    pub(crate) exif: Option<u8>,
    pub(crate) icc: Option<Vec<u8>>,
    pub(crate) is_progressive: bool,
    /// Restart markers after this many tiles; 0 for none.
    pub(crate) restart: u16,
}

impl TileJpeg {
    pub(crate) const GREY: Self =
        Self { components: 1, adobe: None, exif: None, icc: None, is_progressive: false, restart: 0 };

    /// Encodes a picture of whole tiles from the samples at their corners.
    pub(crate) fn encode(&self, width: u32, height: u32, samples: impl Fn(u32, u32) -> [u8; 4]) -> Vec<u8> {
        let mut jpeg = vec![0xff, 0xd8];
        let segment = |jpeg: &mut Vec<u8>, marker: u8, payload: &[u8]| {
            jpeg.extend([0xff, marker]);
            jpeg.extend((payload.len() as u16 + 2).to_be_bytes());
            jpeg.extend(payload);
        };
        if let Some(transform) = self.adobe {
            segment(&mut jpeg, 0xee, &[b"Adobe\0\x64\0\0\0\0".as_slice(), &[transform]].concat());
        }
        if let Some(orientation) = self.exif {
            segment(&mut jpeg, 0xe1, &[b"Exif\0\0".as_slice(), &exif(orientation)].concat());
        }
        if let Some(icc) = &self.icc {
            segment(&mut jpeg, 0xe2, &[b"ICC_PROFILE\0\x01\x01".as_slice(), icc].concat());
        }
        // Steps of 8 make the first coefficient of a flat tile its sample less 128.
        segment(&mut jpeg, 0xdb, &[vec![0], vec![8; 64]].concat());
        let ids = 1..=self.components as u8;
        let frame = [8, (height >> 8) as u8, height as u8, (width >> 8) as u8, width as u8, self.components as u8];
        let frame = frame.into_iter().chain(ids.clone().flat_map(|id| [id, 0x11, 0])).collect::<Vec<u8>>();
        segment(&mut jpeg, if self.is_progressive { 0xc2 } else { 0xc0 }, &frame);
        // Sizes 0 to 8 as codes of four bits; of the other coefficients only their absence, as one bit.
        let counts = |length: usize, codes: u8| (1..=16).map(move |bits| if bits == length { codes } else { 0 });
        segment(&mut jpeg, 0xc4, &std::iter::once(0x00).chain(counts(4, 9)).chain(0..=8).collect::<Vec<u8>>());
        segment(&mut jpeg, 0xc4, &std::iter::once(0x10).chain(counts(1, 1)).chain([0]).collect::<Vec<u8>>());
        if self.restart > 0 {
            segment(&mut jpeg, 0xdd, &self.restart.to_be_bytes());
        }
        let scan = std::iter::once(self.components as u8).chain(ids.flat_map(|id| [id, 0]));
        let last = if self.is_progressive { 0 } else { 63 };
        segment(&mut jpeg, 0xda, &scan.chain([0, last, 0]).collect::<Vec<u8>>());

        let mut bits = Bits { jpeg, held: 0, count: 0 };
        let mut before = [0i32; 4];
        for tile in 0..width / 8 * (height / 8) {
            if self.restart > 0 && tile > 0 && tile % u32::from(self.restart) == 0 {
                bits.flush();
                bits.jpeg.extend([0xff, 0xd0 + ((tile / u32::from(self.restart) - 1) % 8) as u8]);
                before = [0; 4];
            }
            let sample = samples(tile % (width / 8) * 8, tile / (width / 8) * 8);
            for component in 0..self.components {
                let value = i32::from(sample[component]) - 128;
                let difference = value - before[component];
                before[component] = value;
                let size = 32 - difference.unsigned_abs().leading_zeros();
                bits.put(size, 4);
                bits.put((if difference < 0 { difference - 1 } else { difference }) as u32, size);
                if !self.is_progressive {
                    bits.put(0, 1);
                }
            }
        }
        bits.flush();
        bits.jpeg.extend([0xff, 0xd9]);
        bits.jpeg
    }
}

/// Writes bits from the highest down, with a zero after each byte that would look like a marker.
struct Bits {
    jpeg: Vec<u8>,
    held: u32,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, count: u32) {
        for place in (0..count).rev() {
            self.held = self.held << 1 | (value >> place & 1);
            self.count += 1;
            if self.count == 8 {
                self.jpeg.push(self.held as u8);
                if self.held as u8 == 0xff {
                    self.jpeg.push(0);
                }
                (self.held, self.count) = (0, 0);
            }
        }
    }

    fn flush(&mut self) {
        while self.count > 0 {
            self.put(1, 1);
        }
    }
}

/// A PNG whose header says this and whose image data is `data`, a zlib stream.
pub(crate) fn raw_png(info: png::Info<'_>, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = png::Encoder::with_info(&mut bytes, info).unwrap().write_header().unwrap();
    writer.write_chunk(png::chunk::IDAT, data).unwrap();
    drop(writer);
    bytes
}

/// An interlaced grey PNG (Adam7).
pub(crate) fn interlaced_png(picture: &GrayImage) -> Vec<u8> {
    let mut rows = Vec::new();
    for (x, y, step_x, step_y) in
        [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    {
        for row in (y..picture.height()).step_by(step_y) {
            rows.push(0);
            rows.extend((x..picture.width()).step_by(step_x).map(|column| picture.get_pixel(column, row).0[0]));
        }
    }
    let mut info = png::Info::with_size(picture.width(), picture.height());
    info.color_type = png::ColorType::Grayscale;
    info.bit_depth = png::BitDepth::Eight;
    info.interlaced = true;
    raw_png(info, &stored(&rows))
}

/// A zlib stream that stores its content as it is.
pub(crate) fn stored(content: &[u8]) -> Vec<u8> {
    let mut zlib = vec![0x78, 0x01];
    let blocks: Vec<&[u8]> = content.chunks(0xffff).collect();
    for (i, block) in blocks.iter().enumerate() {
        let length = block.len() as u16;
        zlib.push(u8::from(i + 1 == blocks.len()));
        zlib.extend(length.to_le_bytes());
        zlib.extend((!length).to_le_bytes());
        zlib.extend(*block);
    }
    let (a, b) = content.iter().fold((1u32, 0u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (a + b) % 65_521)
    });
    zlib.extend((b << 16 | a).to_be_bytes());
    zlib
}
