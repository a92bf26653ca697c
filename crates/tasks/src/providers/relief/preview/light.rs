//! How bright each vertex of the relief is: one lamp from the upper left, the open sky, shadows and hollows.

use crate::providers::relief::height::Heights;
use crate::providers::relief::mesh::Mesh;

/// Toward the lamp; of length 1. Low, so that slopes differ much.
const LAMP: [f32; 3] = [-0.56, 0.62, 0.55];
/// Half way between the lamp and the viewer's direction, for the gloss; of length 1 to within a thousandth.
const GLOSS: [f32; 3] = [-0.215, 0.42, 0.882];
/// Share of light that comes from everywhere.
const SKY: f32 = 0.40;
/// How far a shadow is followed, in distances between vertices.
const SHADOW_STEPS: usize = 40;

/// Light that a place sends on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shade {
    /// Factor on the material's colour; about 1 on a flat plate.
    pub(super) diffuse: f32,
    /// Added whatever the colour.
    pub(super) gloss: f32,
}

impl std::ops::Add for Shade {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { diffuse: self.diffuse + other.diffuse, gloss: self.gloss + other.gloss }
    }
}

impl std::ops::Mul<f32> for Shade {
    type Output = Self;

    fn mul(self, factor: f32) -> Self {
        Self { diffuse: self.diffuse * factor, gloss: self.gloss * factor }
    }
}

/// The shade of every vertex of the relief, in the mesh's order.
pub(super) fn shades(mesh: &Mesh, heights: &Heights) -> Vec<Shade> {
    let (columns, rows) = (heights.columns, heights.rows);
    let blur = (columns.max(rows) as f32 / 36.0).max(1.0);
    let around = heights.blurred(blur);
    // Depth in distances between vertices, so that slopes can be told in grid steps.
    let cell_m = heights.width_m.max(heights.height_m) as f32 / (columns.max(rows) - 1) as f32;
    let highest = heights.values.iter().copied().fold(0.0, f32::max);
    let top_m = mesh.positions[..columns * rows].iter().map(|position| position[2]).fold(0.0, f32::max);
    let depth = if highest > 0.0 { top_m / highest / cell_m } else { 0.0 };

    (0..columns * rows)
        .map(|i| {
            let normal = mesh.normals[i];
            let hollow = (around[i] - heights.values[i]) * depth / blur;
            let open = 1.0 / (1.0 + 1.6 * hollow.max(0.0)) + 0.25 * (-hollow).clamp(0.0, 0.6);
            let sunlit = dot(normal, LAMP).max(0.0) / LAMP[2] * shadow(heights, i, depth);
            let gloss = dot(normal, GLOSS).max(0.0).powi(36) * 0.09 * open;
            Shade { diffuse: SKY * open + (1.0 - SKY) * sunlit.min(1.7), gloss }
        })
        .collect()
}

/// The shade of a wall or the base with these corners.
pub(super) fn wall([a, b, c]: [[f32; 3]; 3]) -> Shade {
    let edge = |to: [f32; 3]| [to[0] - a[0], to[1] - a[1], to[2] - a[2]];
    let (u, v) = (edge(b), edge(c));
    let normal = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
    let length = dot(normal, normal).sqrt().max(f32::MIN_POSITIVE);
    let sunlit = (dot(normal, LAMP) / length).max(0.0);
    Shade { diffuse: 0.7 * SKY + 0.6 * sunlit, gloss: 0.0 }
}

/// How much of the lamp a vertex sees, from 0.35 to 1: the relief is followed toward the lamp, and what stands above the
/// ray dims it, the more the higher it stands.
fn shadow(heights: &Heights, vertex: usize, depth: f32) -> f32 {
    let (x, y) = ((vertex % heights.columns) as f32, (vertex / heights.columns) as f32);
    let reach = LAMP[0].hypot(LAMP[1]);
    let (step_x, step_y, climb) = (LAMP[0] / reach, -LAMP[1] / reach, LAMP[2] / reach);
    let mut above = 0.0f32;
    for step in 1..=SHADOW_STEPS {
        let along = step as f32;
        let (at_x, at_y) = (x + step_x * along, y + step_y * along);
        if at_x < 0.0 || at_y < 0.0 {
            break;
        }
        let ray = heights.values[vertex] * depth + climb * along;
        if ray > depth {
            break;
        }
        let (column, row) = ((at_x + 0.5) as usize, (at_y + 0.5) as usize);
        let ground = heights.values[row.min(heights.rows - 1) * heights.columns + column.min(heights.columns - 1)];
        // Far edges throw softer shadows.
        above = above.max((ground * depth - ray) / (1.0 + 0.12 * along));
    }
    1.0 - 0.65 * (above * 0.7).clamp(0.0, 1.0)
}

fn dot(a: [f32; 3], b: [f32; 3]) -> f32 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}
