//! From heights to a closed body: the relief on top, walls around it, a flat base behind.
//!
//! Metres, +X right, +Y up, the picture facing +Z, centred on the Z axis; height 0 lies in the plane z = 0 and the base
//! at z = -`base_mm`. Every position is one vertex, shared by all faces around it, so the body is watertight by its
//! indices alone: each edge belongs to exactly two triangles, which run along it in opposite directions.
//!
//! One vertex has one normal. Along the rim it is the relief's, so that the picture is lit right up to its edge; where
//! the wall meets the base it points half outward, half back. Walls are therefore shaded softly, not as flat planes.

use super::Params;
use super::height::Heights;

/// A closed triangle mesh.
#[derive(Debug)]
pub(super) struct Mesh {
    /// First the relief, row by row from the top left; then the ring where walls and base meet, counter-clockwise from
    /// the top left as the picture is seen; last the middle of the base.
    pub(super) positions: Vec<[f32; 3]>,
    pub(super) normals: Vec<[f32; 3]>,
    /// Texture coordinates, (0, 0) the picture's top left.
    pub(super) uvs: Vec<[f32; 2]>,
    /// Counter-clockwise as seen from outside; the relief's come first.
    pub(super) triangles: Vec<[u32; 3]>,
}

/// The body for these heights.
pub(super) fn build(heights: &Heights, params: &Params) -> Mesh {
    let rim = rim(heights.columns, heights.rows);
    let (columns, rows) = (heights.columns, heights.rows);
    let vertices = columns * rows + rim.len() + 1;
    let triangles = 2 * (columns - 1) * (rows - 1) + 3 * rim.len();
    let mut mesh = Mesh {
        positions: Vec::with_capacity(vertices),
        normals: Vec::with_capacity(vertices),
        uvs: Vec::with_capacity(vertices),
        triangles: Vec::with_capacity(triangles),
    };
    let depth_m = params.depth_mm / 1000.0;
    let base_z = (-params.base_mm / 1000.0) as f32;
    relief(&mut mesh, heights, depth_m);
    walls_and_base(&mut mesh, heights, &rim, base_z);
    debug_assert_eq!((mesh.positions.len(), mesh.triangles.len()), (vertices, triangles));
    mesh
}

fn relief(mesh: &mut Mesh, heights: &Heights, depth_m: f64) {
    let (columns, rows) = (heights.columns, heights.rows);
    let height = |x: usize, y: usize| heights.values[y * columns + x];
    let cell_x = heights.width_m / (columns - 1) as f64;
    let cell_y = heights.height_m / (rows - 1) as f64;
    for y in 0..rows {
        for x in 0..columns {
            let u = x as f64 / (columns - 1) as f64;
            let v = y as f64 / (rows - 1) as f64;
            mesh.uvs.push([u as f32, v as f32]);
            mesh.positions.push([
                ((u - 0.5) * heights.width_m) as f32,
                ((0.5 - v) * heights.height_m) as f32,
                (f64::from(height(x, y)) * depth_m) as f32,
            ]);
            // Slopes from the neighbours on both sides, from one side at the edges.
            let (left, right) = (x.saturating_sub(1), (x + 1).min(columns - 1));
            let (above, below) = (y.saturating_sub(1), (y + 1).min(rows - 1));
            let rise_x = f64::from(height(right, y) - height(left, y)) * depth_m / ((right - left) as f64 * cell_x);
            let rise_y = f64::from(height(x, above) - height(x, below)) * depth_m / ((below - above) as f64 * cell_y);
            mesh.normals.push(unit([-rise_x, -rise_y, 1.0]));
        }
    }
    for y in 0..rows - 1 {
        for x in 0..columns - 1 {
            let a = (y * columns + x) as u32;
            let (b, c) = (a + 1, a + columns as u32);
            let d = c + 1;
            // Cut along the flatter diagonal, so that ridges and valleys are not sawn into teeth.
            let is_flatter = (height(x + 1, y) - height(x, y + 1)).abs() <= (height(x, y) - height(x + 1, y + 1)).abs();
            mesh.triangles.extend(if is_flatter { [[a, c, b], [b, c, d]] } else { [[a, c, d], [a, d, b]] });
        }
    }
}

fn walls_and_base(mesh: &mut Mesh, heights: &Heights, rim: &[u32], base_z: f32) {
    let ring = mesh.positions.len() as u32;
    let middle = ring + rim.len() as u32;
    let (right, bottom) = ((heights.columns - 1) as u32, (heights.rows - 1) as u32);
    for &top in rim {
        let [x, y, _] = mesh.positions[top as usize];
        mesh.positions.push([x, y, base_z]);
        mesh.uvs.push(mesh.uvs[top as usize]);
        let (column, row) = (top % heights.columns as u32, top / heights.columns as u32);
        let outward = |place: u32, first: f64, last: f64, end: u32| match place {
            0 => first,
            place if place == end => last,
            _ => 0.0,
        };
        mesh.normals.push(unit([outward(column, -1.0, 1.0, right), outward(row, 1.0, -1.0, bottom), -1.0]));
    }
    mesh.positions.push([0.0, 0.0, base_z]);
    mesh.uvs.push([0.5, 0.5]);
    mesh.normals.push([0.0, 0.0, -1.0]);

    for (i, &top) in rim.iter().enumerate() {
        let next = (i + 1) % rim.len();
        let (low, next_low) = (ring + i as u32, ring + next as u32);
        mesh.triangles.push([rim[next], top, low]);
        mesh.triangles.push([rim[next], low, next_low]);
        mesh.triangles.push([middle, next_low, low]);
    }
}

/// The relief's outermost vertices, counter-clockwise as the picture is seen: down the left side, along the bottom, up
/// the right side, back along the top.
fn rim(columns: usize, rows: usize) -> Vec<u32> {
    let (right, bottom) = (columns - 1, rows - 1);
    let left_side = (0..bottom).map(|y| (0, y));
    let bottom_side = (0..right).map(|x| (x, bottom));
    let right_side = (1..=bottom).rev().map(|y| (right, y));
    let top_side = (1..=right).rev().map(|x| (x, 0));
    left_side.chain(bottom_side).chain(right_side).chain(top_side).map(|(x, y)| (y * columns + x) as u32).collect()
}

fn unit(vector: [f64; 3]) -> [f32; 3] {
    let length = vector.iter().map(|part| part * part).sum::<f64>().sqrt();
    vector.map(|part| (part / length) as f32)
}
