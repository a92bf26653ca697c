//! Samples made by hand and by growth: medallion, gear, monogram, maze, weave, leaf, sunflower, fingerprint.

use std::f32::consts::{PI, TAU};

use super::noise::{Random, clouds, dome, mix, step};
use super::{Field, Spot};

/// A round coin: a rim, a ring of beads and a rose of eight rays with cut faces.
pub(super) fn medallion() -> Field {
    Box::new(|x, y| {
        let (away, angle) = (x.hypot(y), y.atan2(x));
        let rim = step(0.80, 0.84, away) * (1.0 - step(0.92, 0.97, away));
        let bead_angle = (angle / TAU * 60.0).rem_euclid(1.0) - 0.5;
        let bead = dome(((away - 0.74) * 60.0 / TAU / 0.74).hypot(bead_angle), 0.46);
        let ring = dome(away - 0.655, 0.022);

        // Rays are drawn longest first; each falls off from its spine to both sides.
        let ray = |turn: f32, rays: f32, length: f32, width: f32| {
            let fold = ((angle + turn) / TAU * rays).rem_euclid(1.0) - 0.5;
            let (along, aside) = (away * (fold * TAU / rays).cos(), away * (fold * TAU / rays).sin());
            let half = width * (1.0 - along / length) * (along / length + 0.22);
            let face = if aside > 0.0 { 1.0 } else { 0.72 };
            (1.0 - aside.abs() / half.max(1e-4)).max(0.0) * face * step(length, length - 0.04, along)
        };
        let star = ray(0.0, 4.0, 0.62, 0.30).max(0.82 * ray(PI / 4.0, 4.0, 0.50, 0.26));
        let boss = dome(away, 0.085);
        let ground = 0.24 + 0.05 * clouds(x * 14.0, y * 14.0, 2) - 0.08 * step(0.2, 0.66, away);
        let height = ground.max(rim).max(0.25 + 0.6 * bead).max(0.25 + 0.45 * ring).max(0.2 + 0.75 * star);
        Spot { height: height.max(0.5 * f32::from(away < 0.085) + 0.5 * boss), cover: 1.0 - step(0.955, 0.97, away) }
    })
}

/// A cog wheel with a raised rim, six round windows and a bored hub.
pub(super) fn gear() -> Field {
    const TEETH: f32 = 20.0;
    Box::new(|x, y| {
        let (away, angle) = (x.hypot(y), y.atan2(x));
        let tooth = step(-0.35, 0.35, (angle * TEETH).cos());
        let edge = mix(0.79, 0.94, tooth);
        let window_angle = (angle / TAU * 6.0).rem_euclid(1.0) * TAU / 6.0 - PI / 6.0;
        let (window_x, window_y) = (away * window_angle.cos() - 0.43, away * window_angle.sin());
        // Distances to the nearest edge, positive on the metal.
        let inside = (edge - away).min(window_x.hypot(window_y) - 0.125).min(away - 0.085);
        let bevel = step(0.0, 0.035, inside);
        let rim = step(0.60, 0.63, away);
        let hub = 1.0 - step(0.21, 0.24, away);
        let groove = dome(away - 0.70, 0.018);
        let brushed = 0.03 * clouds(angle * 3.0, away * 60.0, 2);
        let height = 0.42 + 0.28 * rim + 0.46 * hub - 0.22 * groove + brushed;
        Spot { height: height * mix(0.45, 1.0, bevel), cover: step(-0.004, 0.004, inside) }
    })
}

/// A framed initial.
pub(super) fn monogram() -> Field {
    Box::new(|x, y| {
        let (away, angle) = (x.hypot(y), y.atan2(x));
        // The bowl of the G: a ring of swelling weight, open to the right, with a bar and a spur.
        let weight = 0.060 + 0.075 * angle.cos().powi(2);
        let bowl = weight - (away - 0.46).abs();
        let opening = (-0.62..0.06).contains(&angle);
        let bar = (0.036 - (y - 0.06).abs()).min(0.20 - (x - 0.44).abs());
        let stem = (0.068 - (x - 0.47).abs()).min(0.19 - (y - 0.22).abs());
        let serif = (0.05 - (x - 0.43 + (y + 0.33) * 0.2).abs()).min(0.10 - (y + 0.30).abs());
        let letter = if opening { f32::MIN } else { bowl }.max(bar).max(stem).max(serif);

        let square = |inset: f32| inset - x.abs().max(y.abs());
        let frame = (0.035 - square(0.88).abs()).max(0.012 - square(0.77).abs());
        let corner = 0.075 - (x.abs() - 0.70).hypot(y.abs() - 0.70);
        let petals = 0.05
            - ((x.abs() - 0.70).abs() - (y.abs() - 0.70).abs()).abs() * 0.9
            - (x.abs() - 0.70).hypot(y.abs() - 0.70) * 0.28;
        let shape = letter.max(frame).max(corner.min(0.02)).max(petals.min(0.018));
        let ground = 0.12 + 0.10 * clouds(x * 5.0, y * 5.0, 3);
        let lozenge = ((x + y) * 11.0).sin().abs().min(((x - y) * 11.0).sin().abs());
        let ground = ground + 0.10 * (1.0 - step(0.0, 0.12, lozenge)) * step(0.0, 0.03, square(0.75));
        Spot::at(mix(ground, 0.62, step(-0.006, 0.006, shape)) + 0.38 * step(0.0, 0.05, shape))
    })
}

/// A maze with one way between any two places, its walls rounded.
pub(super) fn maze() -> Field {
    const ROOMS: usize = 13;
    const CELLS: usize = 2 * ROOMS + 1;
    let is_open = maze_cells::<CELLS>();
    Box::new(move |x, y| {
        let scale = CELLS as f32 / 1.88;
        let (across, down) = ((x + 0.94) * scale, (y + 0.94) * scale);
        let is_wall = |column: i32, row: i32| {
            let inside = (0..CELLS as i32).contains(&column) && (0..CELLS as i32).contains(&row);
            inside && !is_open[row as usize][column as usize]
        };
        // The distance from the nearest line that joins the middles of two walls, in cells.
        let (column, row) = (across.floor() as i32, down.floor() as i32);
        let mut nearest = f32::MAX;
        for (near_column, near_row) in (-1..=1).flat_map(|i| (-1..=1).map(move |j| (column + i, row + j))) {
            if !is_wall(near_column, near_row) {
                continue;
            }
            let (aside, above) = (across - near_column as f32 - 0.5, down - near_row as f32 - 0.5);
            nearest = nearest.min(aside.hypot(above));
            for (step_x, step_y) in [(1, 0), (0, 1), (-1, 0), (0, -1)] {
                if is_wall(near_column + step_x, near_row + step_y) {
                    let along = (aside * step_x as f32 + above * step_y as f32).clamp(0.0, 1.0);
                    nearest = nearest.min((aside - along * step_x as f32).hypot(above - along * step_y as f32));
                }
            }
        }
        let floor = 0.10 + 0.12 * clouds(x * 9.0, y * 9.0, 3);
        Spot::at(mix(floor, 0.86 + 0.14 * dome(nearest, 0.4), 1.0 - step(0.30, 0.42, nearest)))
    })
}

/// Carves rooms, which stand at odd places, by walking at random and turning back where nothing is left to carve.
fn maze_cells<const CELLS: usize>() -> Vec<[bool; CELLS]> {
    let mut random = Random(2026);
    let mut is_open = vec![[false; CELLS]; CELLS];
    let mut path = vec![(1usize, 1usize)];
    is_open[1][1] = true;
    while let Some(&(column, row)) = path.last() {
        let mut ways = Vec::new();
        for (step_x, step_y) in [(2isize, 0isize), (-2, 0), (0, 2), (0, -2)] {
            let next = column.checked_add_signed(step_x).zip(row.checked_add_signed(step_y));
            if let Some((next_column, next_row)) = next
                && next_column < CELLS
                && next_row < CELLS
                && !is_open[next_row][next_column]
            {
                ways.push((next_column, next_row));
            }
        }
        if ways.is_empty() {
            path.pop();
            continue;
        }
        let way = ways[(random.next() * ways.len() as f32) as usize % ways.len()];
        is_open[(row + way.1) / 2][(column + way.0) / 2] = true;
        is_open[way.1][way.0] = true;
        path.push(way);
    }
    // The way in and the way out.
    is_open[0][1] = true;
    is_open[CELLS - 1][CELLS - 2] = true;
    is_open
}

/// Strips of cane, over one and under one.
pub(super) fn weave() -> Field {
    Box::new(|x, y| {
        let (u, v) = (x * 3.5 + 0.5, y * 3.5 + 0.5);
        let strand = |across: f32, along: f32, turn: f32| {
            let number = across.floor();
            let aside = across - number - 0.5;
            let rise = 0.5 + 0.5 * (PI * (along - 0.5 + number) + turn).cos();
            let round = dome(aside, 0.43);
            let fibre = 0.05 * (aside * 46.0).cos() + 0.05 * clouds(across * 20.0, along * 1.2 + number * 7.0, 2);
            let height = 0.12 + 0.52 * step(0.1, 0.75, rise) + 0.16 * rise + 0.16 * round.powf(0.7) + fibre;
            height * f32::from(round > 0.0) * round.min(0.25).powf(0.3) * 1.5
        };
        // Where one strand is up, the one that crosses it is half a turn behind, and so down.
        Spot::at(strand(u, v, 0.0).max(strand(v, u, PI)).max(0.04))
    })
}

/// A serrated leaf with a midrib and veins, on nothing.
pub(super) fn leaf() -> Field {
    Box::new(|x, y| {
        let (turn_sin, turn_cos) = 0.30f32.sin_cos();
        let (x, y) = (x * turn_cos + y * turn_sin, y * turn_cos - x * turn_sin);
        // Along the leaf from its tip (0) to its foot (1).
        let along = (y + 1.06) / 1.74;
        let teeth = ((y * 17.0 - x.abs() * 9.0).rem_euclid(1.0) - 0.5) * 0.035;
        let half = if (0.0..1.0).contains(&along) {
            0.70 * (PI * along.powf(0.86)).sin().powf(1.05) * mix(0.8, 1.15, along) + teeth * (along * 6.0).min(1.0)
        } else {
            0.0
        };
        let inside = half - x.abs();
        let stalk = if (0.6..1.10).contains(&y) { 0.024 - (x + 0.06 * (y - 0.6)).abs() } else { -1.0 };

        let rib = dome(x, 0.006 + 0.03 * along.clamp(0.0, 1.0));
        let phase = (y + x.abs() * 0.85) * 6.2 + 0.25 * (x.abs() * 9.0).sin();
        let off = (phase - phase.round()).abs() / 6.2;
        let vein = dome(off, 0.011) * step(0.0, 0.05, inside);
        let puffed = (off * 6.2 * 2.0).powf(0.7);
        let fine = 0.10 * (clouds(x * 26.0, y * 26.0, 2) - 0.5);
        let blade = 0.30 + 0.30 * puffed * step(0.0, 0.16, inside) + fine - 0.12 * (x.abs() / 0.6);
        let height = blade.max(0.45 + 0.38 * vein * f32::from(vein > 0.0)).max(0.6 + 0.4 * rib * f32::from(rib > 0.0));
        if inside > 0.0 {
            let lift = if rib > 0.0 || vein > 0.0 { height } else { blade };
            Spot { height: lift, cover: step(0.0, 0.008, inside) }
        } else {
            Spot { height: 0.45 + 0.35 * dome(stalk - 0.022, 0.022), cover: step(0.0, 0.006, stalk) }
        }
    })
}

/// Seeds at the golden angle inside two crowns of petals.
pub(super) fn sunflower() -> Field {
    const SEEDS: u32 = 520;
    const DISC: f32 = 0.50;
    let golden = PI * (3.0 - 5.0f32.sqrt());
    let seeds: Vec<(f32, f32)> = (0..SEEDS)
        .map(|n| {
            let away = DISC * ((n as f32 + 0.5) / SEEDS as f32).sqrt();
            (away * (n as f32 * golden).cos(), away * (n as f32 * golden).sin())
        })
        .collect();
    Box::new(move |x, y| {
        let (away, angle) = (x.hypot(y), y.atan2(x));
        let petal = |turn: f32, count: f32, length: f32| {
            let fold = ((angle + turn) / TAU * count).rem_euclid(1.0) - 0.5;
            let along = ((away - 0.42) / (length - 0.42)).clamp(0.0, 1.0);
            let half = 0.56 * (PI * (0.16 + 0.84 * along).powf(0.9)).sin().max(0.0).powf(0.7);
            let body = dome(fold, half.max(1e-3)) * f32::from(along < 1.0);
            let furrow = 0.86 + 0.14 * (fold * 40.0).cos();
            body * furrow * mix(0.72, 1.0, along)
        };
        let back = 0.72 * petal(PI / 19.0, 19.0, 0.97);
        let front = petal(0.0, 19.0, 0.90);
        let ground = 0.10 + 0.08 * clouds(x * 6.0, y * 6.0, 3);
        let mut height = ground.max(0.2 + 0.62 * back * f32::from(back > 0.0));
        height = if front > 0.05 { height.max(0.34 + 0.66 * front) } else { height.max(ground) };
        if away < DISC + 0.02 {
            let nearest = seeds.iter().map(|&(seed_x, seed_y)| (x - seed_x).powi(2) + (y - seed_y).powi(2));
            let nearest = nearest.fold(f32::MAX, f32::min).sqrt();
            let size = DISC * 1.55 / (SEEDS as f32).sqrt() * 0.62;
            let bulge = 0.16 * dome(away, DISC) + 0.14 * step(0.2, DISC, away);
            height = 0.10 + bulge + 0.42 * dome(nearest, size);
        }
        Spot::at(height)
    })
}

/// Ridges around a core, with endings and forks where a turn of the phase is hidden.
pub(super) fn fingerprint() -> Field {
    let mut random = Random(4711);
    let knots: Vec<(f32, f32, f32)> = (0..16)
        .map(|i| {
            let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
            ((random.next() * 2.0 - 1.0) * 0.8, (random.next() * 2.0 - 1.0) * 1.0, sign)
        })
        .collect();
    Box::new(move |x, y| {
        // A core above the middle; below it the lines run flatter, as they do toward the joint.
        let (core_x, core_y) = (x - 0.05 + 0.16 * (y + 0.2), y + 0.12);
        let flat = step(-0.1, 1.1, core_y);
        let oval = (core_x * mix(1.15, 0.42, flat)).hypot(core_y * mix(0.88, 1.1, flat));
        let bend = clouds(x * 1.7 + 3.0, y * 1.7, 3) - 0.5;
        let turns: f32 = knots.iter().map(|&(at_x, at_y, sign)| sign * (y - at_y).atan2(x - at_x)).sum();
        let phase = oval * 86.0 + bend * 11.0 + turns;
        let ridge = (0.5 + 0.62 * phase.cos()).clamp(0.0, 1.0);
        let pressed = 0.82 + 0.30 * (clouds(x * 5.0, y * 5.0, 3) - 0.5);
        let finger = 1.0 - step(0.86, 1.0, (x / 0.88).hypot((y + 0.02) / 1.16));
        Spot::at(0.08 + 0.05 * clouds(x * 3.0, y * 3.0, 2) + 0.85 * ridge * pressed * finger)
    })
}
