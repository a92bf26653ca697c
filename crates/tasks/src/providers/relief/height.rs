//! From a picture to a grid of heights: resampled, inverted when asked, smoothed.

use super::Params;
use super::picture::Picture;

/// Heights from 0 (ground) to 1 (full depth) in rows from the picture's top, and the extent of the grid.
#[derive(Debug)]
pub(super) struct Heights {
    /// Vertices across, at least 2.
    pub(super) columns: usize,
    /// Vertices down, at least 2.
    pub(super) rows: usize,
    pub(super) width_m: f64,
    pub(super) height_m: f64,
    pub(super) values: Vec<f32>,
}

/// Heights for `params.samples` vertices along the longest side and as many along the other as keep the cells square.
pub(super) fn heights(picture: &Picture, params: &Params) -> Heights {
    let (columns, rows) = grid(picture.aspect, params.samples as usize);
    let across = resampling(picture.width, columns);
    let down = resampling(picture.height, rows);
    let mut values = filter(&picture.light, picture.width, &across, &down);
    if params.invert {
        // Both planes carry the opacity as a factor, so transparent places are 0 before and after.
        match &picture.cover {
            None => values.iter_mut().for_each(|value| *value = 1.0 - *value),
            Some(cover) => {
                let cover = filter(cover, picture.width, &across, &down);
                values.iter_mut().zip(cover).for_each(|(value, cover)| *value = cover - *value);
            }
        }
    }
    if params.smoothing > 0.0 {
        let deviation = (params.smoothing / 2.0) as f32;
        values = filter(&values, columns, &blurring(columns, deviation), &blurring(rows, deviation));
    }
    // Rounding in the sums above can leave the range by a few millionths.
    values.iter_mut().for_each(|value| *value = value.clamp(0.0, 1.0));

    let long_m = params.size_mm / 1000.0;
    let (width_m, height_m) =
        if picture.aspect >= 1.0 { (long_m, long_m / picture.aspect) } else { (long_m * picture.aspect, long_m) };
    Heights { columns, rows, width_m, height_m, values }
}

impl Heights {
    /// The heights blurred by a Gaussian of this deviation, in distances between vertices.
    pub(super) fn blurred(&self, deviation: f32) -> Vec<f32> {
        filter(&self.values, self.columns, &blurring(self.columns, deviation), &blurring(self.rows, deviation))
    }
}

fn grid(aspect: f64, samples: usize) -> (usize, usize) {
    let short = |ratio: f64| ((((samples - 1) as f64) * ratio).round() as usize + 1).max(2);
    if aspect >= 1.0 { (samples, short(aspect.recip())) } else { (short(aspect), samples) }
}

/// What one value of a filtered line is made of: weights, summing to 1, of neighbours from `first` on.
struct Taps {
    first: usize,
    weights: Vec<f32>,
}

impl Taps {
    /// Taps around `centre` on a line of `length` values, weighted by distance up to `reach`; what lies beyond the ends
    /// counts for nothing, so that edges keep their brightness.
    fn around(centre: f64, reach: f64, length: usize, weight: impl Fn(f64) -> f64) -> Self {
        let last = length - 1;
        let first = ((centre - reach).ceil().max(0.0) as usize).min(last);
        let end = ((centre + reach).floor().max(0.0) as usize).clamp(first, last);
        let weights: Vec<f64> = (first..=end).map(|place| weight(place as f64 - centre)).collect();
        let sum: f64 = weights.iter().sum();
        Self { first, weights: weights.into_iter().map(|weight| (weight / sum) as f32).collect() }
    }

    fn of(&self, line: impl Fn(usize) -> f32) -> f32 {
        self.weights.iter().enumerate().map(|(i, weight)| weight * line(self.first + i)).sum()
    }
}

/// From pixels, which have area, to vertices, of which the first and last stand on the picture's edges: each pixel counts
/// by how much of it lies in the cell around the vertex. Where pixels are larger than cells, one pixel's width is used
/// instead, which interpolates linearly.
fn resampling(pixels: usize, vertices: usize) -> Vec<Taps> {
    let pixels_a_cell = pixels as f64 / (vertices - 1) as f64;
    let half = pixels_a_cell.max(1.0) / 2.0;
    (0..vertices)
        .map(|vertex| {
            let centre = (vertex as f64 * pixels_a_cell - 0.5).clamp(0.0, (pixels - 1) as f64);
            Taps::around(centre, half + 0.5, pixels, |distance| (half + 0.5 - distance.abs()).clamp(0.0, 1.0))
        })
        .collect()
}

fn blurring(length: usize, deviation: f32) -> Vec<Taps> {
    let deviation = f64::from(deviation);
    (0..length)
        .map(|place| {
            Taps::around(place as f64, (3.0 * deviation).ceil(), length, |distance| {
                (-0.5 * (distance / deviation).powi(2)).exp()
            })
        })
        .collect()
}

/// Applies the taps along every row, then along every column. A plane is a line of rows of `width` values.
fn filter(plane: &[f32], width: usize, across: &[Taps], down: &[Taps]) -> Vec<f32> {
    let height = plane.len() / width;
    let mut lines = Vec::with_capacity(across.len() * height);
    for row in plane.chunks_exact(width) {
        lines.extend(across.iter().map(|taps| taps.of(|x| row[x])));
    }
    let columns = across.len();
    let mut filtered = vec![0.0; columns * down.len()];
    for (row, taps) in filtered.chunks_exact_mut(columns).zip(down) {
        // Whole rows at a time, which memory likes better than column after column.
        for (i, &weight) in taps.weights.iter().enumerate() {
            let line = &lines[(taps.first + i) * columns..][..columns];
            row.iter_mut().zip(line).for_each(|(sum, value)| *sum += weight * value);
        }
    }
    filtered
}
