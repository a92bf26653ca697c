//! A decoded picture at working size, and the funnel that every decoder pours its rows into.
//!
//! No model shows more than [`SIDE_MAX`] pixels along a side, so rows are averaged down while they are decoded and a
//! picture of 100 megapixels never stands in memory when its format comes in rows. Averaging is over whole blocks in
//! integers: exact, the same on every machine, and free of weights.

use image::metadata::Orientation;

/// Longest side of a texture, and so of a working picture, in pixels.
pub(super) const SIDE_MAX: u32 = 2048;

/// What shows through transparent places of the texture: the material of the plate, a warm light grey (sRGB).
const PLATE: [f32; 3] = [0.88, 0.87, 0.84];

/// The picture as the later steps want it: upright and with no side above [`SIDE_MAX`].
#[derive(Debug)]
pub(super) struct Picture {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Width over height of the picture as it was before it was averaged down, which rounds sides up.
    pub(super) aspect: f64,
    /// Texture: 8-bit sRGB, three bytes a pixel, transparent places filled with the plate's colour.
    pub(super) rgb: Vec<u8>,
    /// Brightness times opacity, 0 to 1: luma of the sRGB values with the weights of Rec. 709, whose primaries sRGB
    /// shares. Gamma is kept, for it spreads heights as the eye spreads greys.
    pub(super) light: Vec<f32>,
    /// Opacity, 0 to 1; nothing when the whole picture is opaque.
    pub(super) cover: Option<Vec<f32>>,
}

/// Takes rows from the top down and averages them into a [`Picture`].
#[derive(Debug)]
pub(super) struct Shrink {
    source_width: usize,
    source_height: usize,
    /// Side of the square block of source pixels that makes one pixel here.
    block: usize,
    rows_taken: usize,
    /// Sums of the current row of blocks: red, green, blue times opacity, and opacity, in 1/65535.
    sums: Vec<[u32; 4]>,
    is_opaque: bool,
    cover: Vec<f32>,
    picture: Picture,
}

impl Shrink {
    /// A funnel for a picture of this size, which is at least 1 x 1.
    pub(super) fn new(source_width: u32, source_height: u32) -> Self {
        // At most 65,535 / 2048 rounded up = 32, so 32 * 32 sums of 65,535 stay within 32 bits.
        let block = source_width.max(source_height).div_ceil(SIDE_MAX) as usize;
        let (source_width, source_height) = (source_width as usize, source_height as usize);
        let (width, height) = (source_width.div_ceil(block), source_height.div_ceil(block));
        let pixels = width * height;
        Self {
            source_width,
            source_height,
            block,
            rows_taken: 0,
            sums: vec![[0; 4]; width],
            is_opaque: true,
            cover: Vec::with_capacity(pixels),
            picture: Picture {
                width,
                height,
                aspect: source_width as f64 / source_height as f64,
                rgb: Vec::with_capacity(pixels * 3),
                light: Vec::with_capacity(pixels),
                cover: None,
            },
        }
    }

    /// Takes one row of 8-bit samples: grey, grey and alpha, RGB or RGBA, by the number of `channels`.
    pub(super) fn row8(&mut self, row: &[u8], channels: usize) {
        debug_assert_eq!(row.len(), self.source_width * channels);
        let wide = |sample: u8| u32::from(sample) * 257;
        for (pixels, sums) in row.chunks(self.block * channels).zip(&mut self.sums) {
            match channels {
                1 => {
                    let grey = 257 * pixels.iter().map(|&grey| u32::from(grey)).sum::<u32>();
                    add(sums, [grey, grey, grey, 65_535 * pixels.len() as u32]);
                }
                3 => {
                    let (pixels, _) = pixels.as_chunks::<3>();
                    let sum = pixels.iter().fold([0u32; 3], |sum, pixel| {
                        [sum[0] + u32::from(pixel[0]), sum[1] + u32::from(pixel[1]), sum[2] + u32::from(pixel[2])]
                    });
                    add(sums, [sum[0] * 257, sum[1] * 257, sum[2] * 257, 65_535 * pixels.len() as u32]);
                }
                2 => pixels
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .for_each(|&[grey, alpha]| add(sums, covered([wide(grey); 3], wide(alpha)))),
                _ => pixels
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .for_each(|&[r, g, b, alpha]| add(sums, covered([wide(r), wide(g), wide(b)], wide(alpha)))),
            }
        }
        self.row_taken();
    }

    /// Takes one row of 16-bit samples, most significant byte first, as PNG stores them.
    pub(super) fn row16_be(&mut self, row: &[u8], channels: usize) {
        debug_assert_eq!(row.len(), self.source_width * channels * 2);
        for (pixels, sums) in row.chunks(self.block * channels * 2).zip(&mut self.sums) {
            for pixel in pixels.chunks_exact(channels * 2) {
                let sample = |i: usize| u32::from(u16::from_be_bytes([pixel[2 * i], pixel[2 * i + 1]]));
                let (colour, alpha) = match channels {
                    1 => ([sample(0); 3], 65_535),
                    2 => ([sample(0); 3], sample(1)),
                    3 => ([sample(0), sample(1), sample(2)], 65_535),
                    _ => ([sample(0), sample(1), sample(2)], sample(3)),
                };
                add(sums, covered(colour, alpha));
            }
        }
        self.row_taken();
    }

    /// Share of the rows taken so far, 0 to 1.
    pub(super) fn done(&self) -> f32 {
        self.rows_taken as f32 / self.source_height as f32
    }

    /// Ends the picture, turned as its metadata says. Rows that were never given count as a fault of the caller.
    pub(super) fn finish(mut self, orientation: Orientation) -> Picture {
        debug_assert_eq!(self.rows_taken, self.source_height);
        if !self.is_opaque {
            self.picture.cover = Some(self.cover);
        }
        self.picture.turned(orientation)
    }

    fn row_taken(&mut self) {
        self.rows_taken += 1;
        let rows = match self.rows_taken % self.block {
            0 => self.block,
            // The last row of blocks may be lower than the others.
            rest if self.rows_taken == self.source_height => rest,
            _ => return,
        };
        for (x, sums) in self.sums.iter_mut().enumerate() {
            let columns = self.block.min(self.source_width - x * self.block);
            let whole = (rows * columns) as u32 * 65_535;
            let [r, g, b, alpha] = sums.map(|sum| sum as f32 / whole as f32);
            self.is_opaque &= sums[3] == whole;
            self.cover.push(alpha);
            self.picture.light.push(0.2126 * r + 0.7152 * g + 0.0722 * b);
            for (colour, plate) in [r, g, b].into_iter().zip(PLATE) {
                self.picture.rgb.push(((colour + plate * (1.0 - alpha)) * 255.0 + 0.5) as u8);
            }
            *sums = [0; 4];
        }
    }
}

fn add(sums: &mut [u32; 4], more: [u32; 4]) {
    for (sum, more) in sums.iter_mut().zip(more) {
        *sum += more;
    }
}

/// A colour weighted by its opacity, all in 1/65535.
fn covered(colour: [u32; 3], alpha: u32) -> [u32; 4] {
    let [r, g, b] = colour.map(|sample| (sample * alpha + 32_767) / 65_535);
    [r, g, b, alpha]
}

impl Picture {
    fn turned(self, orientation: Orientation) -> Self {
        if orientation == Orientation::NoTransforms {
            return self;
        }
        let turn = Turn { width: self.width, height: self.height, orientation };
        let (width, height) = turn.size();
        Self {
            width,
            height,
            aspect: if turn.lays_on_side() { self.aspect.recip() } else { self.aspect },
            rgb: turn.plane::<u8, 3>(&self.rgb),
            light: turn.plane::<f32, 1>(&self.light),
            cover: self.cover.map(|cover| turn.plane::<f32, 1>(&cover)),
        }
    }
}

/// The turn of an upright picture out of one of this size.
struct Turn {
    width: usize,
    height: usize,
    orientation: Orientation,
}

impl Turn {
    /// Whether width and height change places, which the EXIF values from 5 on ask for.
    fn lays_on_side(&self) -> bool {
        self.orientation.to_exif() >= 5
    }

    fn size(&self) -> (usize, usize) {
        if self.lays_on_side() { (self.height, self.width) } else { (self.width, self.height) }
    }

    /// The turned copy of one plane with `N` values a pixel.
    fn plane<T: Copy, const N: usize>(&self, plane: &[T]) -> Vec<T> {
        let (width, height) = self.size();
        let (right, bottom) = (self.width - 1, self.height - 1);
        let mut turned = Vec::with_capacity(plane.len());
        for y in 0..height {
            for x in 0..width {
                let (from_x, from_y) = match self.orientation {
                    Orientation::NoTransforms => (x, y),
                    Orientation::FlipHorizontal => (right - x, y),
                    Orientation::Rotate180 => (right - x, bottom - y),
                    Orientation::FlipVertical => (x, bottom - y),
                    Orientation::Rotate90FlipH => (y, x),
                    Orientation::Rotate90 => (y, bottom - x),
                    Orientation::Rotate270FlipH => (right - y, bottom - x),
                    Orientation::Rotate270 => (right - y, x),
                };
                let start = (from_y * self.width + from_x) * N;
                turned.extend_from_slice(&plane[start..start + N]);
            }
        }
        turned
    }
}
