//! Smooth noise, random numbers and the few shapes that the drawings share.

/// A number from 0 to 1 for each point of a lattice.
fn lattice(x: i32, y: i32) -> f32 {
    // Mixes both coordinates until neighbours have nothing in common.
    let mut bits = (x as u32).wrapping_mul(0x9e37_79b1) ^ (y as u32).wrapping_mul(0x85eb_ca77);
    for _ in 0..2 {
        bits ^= bits >> 15;
        bits = bits.wrapping_mul(0x2c1b_3c6d);
        bits ^= bits >> 13;
    }
    (bits >> 8) as f32 / (1 << 24) as f32
}

/// Noise from 0 to 1 without corners, one bump a unit.
pub(super) fn noise(x: f32, y: f32) -> f32 {
    let (left, above) = (x.floor(), y.floor());
    let (across, down) = (eased(x - left), eased(y - above));
    let (i, j) = (left as i32, above as i32);
    let upper = mix(lattice(i, j), lattice(i + 1, j), across);
    let lower = mix(lattice(i, j + 1), lattice(i + 1, j + 1), across);
    mix(upper, lower, down)
}

/// Noise of several sizes on top of each other, from 0 to 1, each half as large and half as strong as the one before.
pub(super) fn clouds(x: f32, y: f32, layers: u32) -> f32 {
    let (mut sum, mut strength, mut whole, mut scale) = (0.0, 1.0, 0.0, 1.0);
    for layer in 0..layers {
        // Shifted, so that the lattices do not meet in one point.
        let shift = 17.3 * layer as f32;
        sum += strength * noise(x * scale + shift, y * scale - shift);
        whole += strength;
        strength *= 0.5;
        scale *= 2.0;
    }
    sum / whole
}

/// Ridges where [`clouds`] would cross its middle: 1 on the crest, 0 far from it.
pub(super) fn ridges(x: f32, y: f32, layers: u32) -> f32 {
    let (mut sum, mut strength, mut whole, mut scale, mut carried) = (0.0, 1.0, 0.0, 1.0, 1.0);
    for layer in 0..layers {
        let shift = 31.7 * layer as f32;
        let crest = 1.0 - (2.0 * noise(x * scale + shift, y * scale - shift) - 1.0).abs();
        // Fine ridges grow on coarse ones and leave the valleys smooth.
        sum += strength * crest * crest * carried;
        whole += strength;
        carried = (crest * 1.4).min(1.0);
        strength *= 0.5;
        scale *= 2.1;
    }
    sum / whole
}

/// A small generator of random numbers, the same row for the same seed.
#[derive(Debug)]
pub(super) struct Random(pub(super) u32);

impl Random {
    /// The next number from 0 to 1.
    pub(super) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 8) as f32 / (1 << 24) as f32
    }
}

/// From `a` to `b` as `share` goes from 0 to 1.
pub(super) fn mix(a: f32, b: f32, share: f32) -> f32 {
    a + (b - a) * share
}

/// 0 below `low`, 1 above `high`, a soft step between.
pub(super) fn step(low: f32, high: f32, value: f32) -> f32 {
    eased(((value - low) / (high - low)).clamp(0.0, 1.0))
}

/// 1 at the middle of a band of this half width around 0, round like a dome, 0 outside.
pub(super) fn dome(value: f32, half_width: f32) -> f32 {
    (1.0 - (value / half_width).powi(2)).max(0.0).sqrt()
}

fn eased(value: f32) -> f32 {
    value * value * (3.0 - 2.0 * value)
}
