//! A shaded view of the finished mesh: 512 x 512 pixels, PNG, drawn by a small software rasteriser of our own.
//!
//! It is drawn at twice that size and averaged down. The light grazes the relief from the upper left, hollows are
//! darkened and the relief throws shadows onto itself (`light`), for a picture laid on flat shading would hide the very
//! thing that was made. `raster` turns triangles into pixels.

mod light;
mod raster;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder as _};

use super::Fault;
use super::height::Heights;
use super::mesh::Mesh;
use super::picture::Picture;
use light::Shade;
use raster::Canvas;

/// Side of the preview, in pixels.
const SIDE: usize = 512;
/// Side of the canvas that is averaged down to it.
const CANVAS: usize = SIDE * 2;
/// Share of the canvas that the longest side of the view takes.
const FILL: f32 = 0.86;
/// Turn of the model about its upright axis and then toward the viewer, in radians.
const YAW: f32 = -0.42;
const PITCH: f32 = 0.40;
/// Distance of the eye in diagonals of the model: far enough to be calm, near enough to be seen as depth.
const EYE: f32 = 2.6;

/// # Errors
/// [`Fault::Io`] should the encoder fail, which memory alone can make it do.
pub(super) fn render(mesh: &Mesh, heights: &Heights, picture: &Picture) -> Result<Vec<u8>, Fault> {
    let view = View::onto(mesh);
    let points: Vec<[f32; 3]> = mesh.positions.iter().map(|&position| view.project(position)).collect();
    let shades = light::shades(mesh, heights);

    let mut canvas = Canvas::new(CANVAS);
    let relief_triangles = 2 * (heights.columns - 1) * (heights.rows - 1);
    for (i, triangle) in mesh.triangles.iter().enumerate() {
        let corners = triangle.map(|vertex| points[vertex as usize]);
        let uvs = triangle.map(|vertex| mesh.uvs[vertex as usize]);
        let corner_shades = if i < relief_triangles {
            triangle.map(|vertex| shades[vertex as usize])
        } else {
            // Walls are flat here, unlike in the file, whose vertices have one normal each.
            [light::wall(triangle.map(|vertex| mesh.positions[vertex as usize])); 3]
        };
        canvas.triangle(corners, uvs, corner_shades, |u, v, shade| lit(picture, u, v, shade));
    }
    canvas.lay_on_background();

    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Adaptive)
        .write_image(&canvas.halved(), SIDE as u32, SIDE as u32, ExtendedColorType::Rgb8)
        .map_err(|error| Fault::Io(std::io::Error::other(error)))?;
    Ok(png)
}

/// Where the eye is, and how what it sees is laid on the canvas.
struct View {
    eye: f32,
    scale: f32,
    shift: [f32; 2],
    centre_z: f32,
}

impl View {
    /// A view that holds all of the mesh.
    fn onto(mesh: &Mesh) -> Self {
        let corner = |pick: fn(f32, f32) -> f32| {
            let corner =
                mesh.positions.iter().copied().reduce(|a, b| std::array::from_fn(|axis| pick(a[axis], b[axis])));
            corner.unwrap_or_default()
        };
        let (min, max) = (corner(f32::min), corner(f32::max));
        let diagonal = (0..3).map(|axis| (max[axis] - min[axis]).powi(2)).sum::<f32>().sqrt();
        let mut view = Self { eye: EYE * diagonal, scale: 1.0, shift: [0.0; 2], centre_z: (min[2] + max[2]) / 2.0 };

        let corners = (0..8)
            .map(|i| view.project(std::array::from_fn(|axis| if i >> axis & 1 == 0 { min[axis] } else { max[axis] })));
        let mut low = [f32::MAX; 2];
        let mut high = [f32::MIN; 2];
        for point in corners {
            for axis in 0..2 {
                low[axis] = low[axis].min(point[axis]);
                high[axis] = high[axis].max(point[axis]);
            }
        }
        let canvas = CANVAS as f32;
        view.scale = canvas * FILL / (high[0] - low[0]).max(high[1] - low[1]);
        view.shift = [0, 1].map(|axis| canvas / 2.0 - (low[axis] + high[axis]) / 2.0 * view.scale);
        view
    }

    /// Canvas coordinates, and nearness to the eye as the third.
    fn project(&self, [x, y, z]: [f32; 3]) -> [f32; 3] {
        let z = z - self.centre_z;
        let (yaw_sin, yaw_cos) = YAW.sin_cos();
        let (x, z) = (x * yaw_cos + z * yaw_sin, z * yaw_cos - x * yaw_sin);
        let (pitch_sin, pitch_cos) = PITCH.sin_cos();
        let (y, z) = (y * pitch_cos - z * pitch_sin, z * pitch_cos + y * pitch_sin);
        let perspective = self.eye / (self.eye - z) * self.scale;
        [x * perspective + self.shift[0], -y * perspective + self.shift[1], z]
    }
}

/// The picture's colour at a texture coordinate under this much light, as sRGB from 0 to 1. Light is applied to squared
/// values, a cheap stand-in for linear ones.
fn lit(picture: &Picture, u: f32, v: f32, shade: Shade) -> [f32; 3] {
    let (width, height) = (picture.width, picture.height);
    let x = (u * width as f32 - 0.5).clamp(0.0, (width - 1) as f32);
    let y = (v * height as f32 - 0.5).clamp(0.0, (height - 1) as f32);
    let (left, above) = (x as usize, y as usize);
    let (right, below) = ((left + 1).min(width - 1), (above + 1).min(height - 1));
    let (across, down) = (x - left as f32, y - above as f32);
    let pixel = |x: usize, y: usize, channel: usize| f32::from(picture.rgb[(y * width + x) * 3 + channel]);
    std::array::from_fn(|channel| {
        let upper = pixel(left, above, channel) * (1.0 - across) + pixel(right, above, channel) * across;
        let lower = pixel(left, below, channel) * (1.0 - across) + pixel(right, below, channel) * across;
        let colour = (upper * (1.0 - down) + lower * down) / 255.0;
        // A little plain material under the picture, or black would show no shape at all.
        let colour = 0.86 * colour * colour + 0.07;
        (colour * shade.diffuse + shade.gloss).min(1.0).sqrt()
    })
}
