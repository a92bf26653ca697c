//! Samples from nature's grounds: dunes, ripples, craters, mountains.

use super::noise::{Random, clouds, dome, mix, ridges, step};
use super::{Field, Spot};

/// Long crests, gentle to windward and steep to lee, with the wind's small ripples on them.
pub(super) fn dunes() -> Field {
    Box::new(|x, y| {
        let bend = clouds(x * 0.9 + 3.0, y * 0.9 + 1.0, 4);
        let phase = 2.1 * y + 0.75 * x + 2.6 * bend;
        let along = phase - phase.floor();
        let crest = 0.72;
        let slope = if along < crest { step(0.0, crest, along) } else { 1.0 - step(crest, 1.0, along) };
        let tall = mix(0.55, 1.0, clouds(x * 0.7 - 5.0, y * 0.7, 2));
        let wind = 9.0 * (y * 0.5 - x) + 9.0 * clouds(x * 1.6, y * 1.6 + 9.0, 3);
        let ripple = 0.5 + 0.5 * (wind * 5.0).sin();
        Spot::at(0.06 + 0.82 * slope * tall + 0.05 * ripple * (1.0 - 0.5 * slope))
    })
}

/// Rings of waves from three drops that meet and pass through each other.
pub(super) fn ripples() -> Field {
    let drops = [(-0.62, -0.30, 1.0), (0.70, 0.42, 0.85), (0.30, -0.75, 0.55)];
    Box::new(move |x, y| {
        let sum: f32 = drops
            .iter()
            .map(|&(drop_x, drop_y, strength)| {
                let away = (x - drop_x).hypot(y - drop_y);
                strength * (away * 27.0).cos() * (-0.9 * away).exp() / (1.0 + 0.6 * away)
            })
            .sum();
        // Crests of water are narrower than its troughs.
        let wave = 0.5 + 0.5 * (sum * 1.15).tanh();
        Spot::at(0.08 + 0.9 * wave.powf(1.25))
    })
}

/// A moon's ground: many small craters, few large, rims and slopes thrown up around them.
pub(super) fn craters() -> Field {
    let mut random = Random(77);
    let mut pits: Vec<[f32; 3]> = (0..90)
        .map(|_| {
            let radius = 0.028 + 0.30 * random.next().powf(5.0);
            [(random.next() * 2.0 - 1.0) * 1.3, random.next() * 2.0 - 1.0, radius]
        })
        .collect();
    // The large are the old: the small lie in and over them.
    pits.sort_by(|a, b| b[2].total_cmp(&a[2]));
    Box::new(move |x, y| {
        let rough = 0.05 * (clouds(x * 9.0, y * 9.0, 3) - 0.5);
        let mut height = 0.5 + 0.28 * (clouds(x * 1.3 + 8.0, y * 1.3, 4) - 0.5) + rough;
        for &[pit_x, pit_y, radius] in &pits {
            let away = (x - pit_x).hypot(y - pit_y) / radius;
            if away > 2.2 {
                continue;
            }
            let size = (radius / 0.3).sqrt();
            if away < 1.0 {
                let bowl = 0.5 - 0.42 * size + 0.62 * size * away.powi(3);
                let peak = if radius > 0.16 { 0.16 * dome(away, 0.26) } else { 0.0 };
                height = mix(bowl + peak + rough, height + 0.2 * size, step(0.75, 1.0, away));
            } else {
                height += 0.2 * size * (1.0 - step(1.0, 2.2, away)).powi(2);
            }
        }
        Spot::at(height)
    })
}

/// Ridges that carry ridges, under snow where they are high.
pub(super) fn mountains() -> Field {
    Box::new(|x, y| {
        let (bend_x, bend_y) = (clouds(x * 1.6, y * 1.6 + 40.0, 3), clouds(x * 1.6 - 60.0, y * 1.6, 3));
        let crest = ridges(x * 2.3 + 0.9 * bend_x + 2.0, y * 2.3 + 0.9 * bend_y + 7.0, 5);
        let broad = clouds(x * 1.4 + 11.0, y * 1.4 - 4.0, 2);
        let tall = step(0.2, 0.8, broad);
        let height = 0.10 * broad + 1.5 * crest.powf(1.5) * mix(0.35, 1.0, tall);
        // Bent over, so that no summit is cut off flat.
        Spot::at(0.04 + 1.05 * (1.0 - (-1.5 * height).exp()))
    })
}
