//! Triangles into pixels: a depth buffer, a background with a soft shadow, and averaging down.

use super::light::Shade;

/// Background at the top and at the bottom, sRGB: a quiet, cool grey.
const ABOVE: [f32; 3] = [0.945, 0.95, 0.955];
const BELOW: [f32; 3] = [0.80, 0.815, 0.835];
/// How dark the shadow under the model is.
const SHADOW: f32 = 0.42;

/// A square of pixels with depth.
#[derive(Debug)]
pub(super) struct Canvas {
    side: usize,
    colours: Vec<[f32; 3]>,
    /// Nearness to the eye; -infinity where nothing was drawn.
    nearness: Vec<f32>,
}

impl Canvas {
    pub(super) fn new(side: usize) -> Self {
        Self { side, colours: vec![[0.0; 3]; side * side], nearness: vec![f32::NEG_INFINITY; side * side] }
    }

    /// Draws a triangle if it faces the eye: `corners` are canvas coordinates and nearness, `colour` is asked for each
    /// pixel with texture coordinates and light. Perspective is weak and triangles are small, so all is interpolated
    /// plainly.
    pub(super) fn triangle(
        &mut self,
        corners: [[f32; 3]; 3],
        uvs: [[f32; 2]; 3],
        shades: [Shade; 3],
        colour: impl Fn(f32, f32, Shade) -> [f32; 3],
    ) {
        let [a, b, c] = corners;
        // Rows run downward, so what is counter-clockwise to the viewer is clockwise here.
        let area = (c[0] - a[0]) * (b[1] - a[1]) - (b[0] - a[0]) * (c[1] - a[1]);
        if area <= 0.0 {
            return;
        }
        let limit = self.side as f32;
        let span = |axis: usize| {
            let (p, q, r) = (a[axis], b[axis], c[axis]);
            let low = (p.min(q).min(r) - 0.5).ceil().clamp(0.0, limit) as usize;
            let high = (p.max(q).max(r) - 0.5).floor().clamp(-1.0, limit - 1.0);
            low..(high + 1.0) as usize
        };
        let across = |p: [f32; 3], q: [f32; 3], x: f32, y: f32| (x - p[0]) * (q[1] - p[1]) - (q[0] - p[0]) * (y - p[1]);
        for row in span(1) {
            for column in span(0) {
                let (x, y) = (column as f32 + 0.5, row as f32 + 0.5);
                let weights = [across(b, c, x, y), across(c, a, x, y), across(a, b, x, y)].map(|part| part / area);
                if weights.iter().any(|&weight| weight < 0.0) {
                    continue;
                }
                let [wa, wb, wc] = weights;
                let nearness = wa * a[2] + wb * b[2] + wc * c[2];
                let pixel = row * self.side + column;
                if nearness > self.nearness[pixel] {
                    self.nearness[pixel] = nearness;
                    let uv = |axis: usize| wa * uvs[0][axis] + wb * uvs[1][axis] + wc * uvs[2][axis];
                    self.colours[pixel] = colour(uv(0), uv(1), shades[0] * wa + shades[1] * wb + shades[2] * wc);
                }
            }
        }
    }

    /// Fills what nothing covers: a slope of grey, darkened where the model throws a soft shadow down and to the right.
    pub(super) fn lay_on_background(&mut self) {
        let side = self.side;
        let mut shadow: Vec<f32> =
            self.nearness.iter().map(|nearness| if nearness.is_finite() { 1.0 } else { 0.0 }).collect();
        // Three box blurs are near enough to a Gaussian.
        for _ in 0..3 {
            shadow = box_blurred(&shadow, side, side / 40);
        }
        let (right, down) = (side / 34, side / 26);
        for row in 0..side {
            let fall = row as f32 / (side - 1) as f32;
            for column in 0..side {
                let pixel = row * side + column;
                if self.nearness[pixel].is_finite() {
                    continue;
                }
                let from = row.checked_sub(down).zip(column.checked_sub(right));
                let shade = from.map_or(0.0, |(row, column)| shadow[row * side + column]);
                self.colours[pixel] = std::array::from_fn(|channel| {
                    let grey = ABOVE[channel] * (1.0 - fall) + BELOW[channel] * fall;
                    grey * (1.0 - SHADOW * shade)
                });
            }
        }
    }

    /// The picture at half the side, 8-bit RGB.
    pub(super) fn halved(&self) -> Vec<u8> {
        let half = self.side / 2;
        let mut rgb = Vec::with_capacity(half * half * 3);
        for row in 0..half {
            for column in 0..half {
                let corner = 2 * row * self.side + 2 * column;
                let four = [corner, corner + 1, corner + self.side, corner + self.side + 1];
                for channel in 0..3 {
                    let sum: f32 = four.iter().map(|&pixel| self.colours[pixel][channel]).sum();
                    rgb.push((sum / 4.0 * 255.0 + 0.5) as u8);
                }
            }
        }
        rgb
    }
}

/// A square plane averaged over squares of side `2 * radius + 1`; beyond the edges all is 0.
fn box_blurred(plane: &[f32], side: usize, radius: usize) -> Vec<f32> {
    transposed_sums(&transposed_sums(plane, side, radius), side, radius)
}

/// Every row averaged along itself, written as a column: twice gives both directions and the old order.
fn transposed_sums(plane: &[f32], side: usize, radius: usize) -> Vec<f32> {
    let mut turned = vec![0.0; plane.len()];
    for (y, row) in plane.chunks_exact(side).enumerate() {
        let mut sum: f32 = row[..radius].iter().sum();
        for x in 0..side {
            sum += row.get(x + radius).copied().unwrap_or_default();
            turned[x * side + y] = sum / (2 * radius + 1) as f32;
            sum -= x.checked_sub(radius).map_or(0.0, |place| row[place]);
        }
    }
    turned
}
