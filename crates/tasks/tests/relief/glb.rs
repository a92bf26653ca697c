//! A reader for the GLB files under test, and the checks that need nothing but the mesh.

use std::collections::HashMap;

use serde_json::Value;

/// The mesh and the texture of a model.
#[derive(Debug)]
pub(crate) struct Glb {
    pub(crate) json: Value,
    pub(crate) positions: Vec<[f32; 3]>,
    pub(crate) normals: Vec<[f32; 3]>,
    pub(crate) uvs: Vec<[f32; 2]>,
    pub(crate) triangles: Vec<[u32; 3]>,
    pub(crate) texture: Vec<u8>,
}

impl Glb {
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!(&bytes[..4], b"glTF");
        assert_eq!(word(4), 2);
        assert_eq!(word(8), bytes.len());
        let json_bytes = word(12);
        assert_eq!(&bytes[16..20], b"JSON");
        let json: Value = serde_json::from_slice(&bytes[20..20 + json_bytes]).unwrap();
        let binary = 20 + json_bytes;
        assert_eq!(&bytes[binary + 4..binary + 8], b"BIN\0");
        let binary = &bytes[binary + 8..][..word(binary)];

        let view = |index: &Value| {
            let view = &json["bufferViews"][index.as_u64().unwrap() as usize];
            let start = view["byteOffset"].as_u64().unwrap_or_default() as usize;
            &binary[start..][..view["byteLength"].as_u64().unwrap() as usize]
        };
        let words = |index: &Value| -> Vec<u32> {
            let bytes = view(&json["accessors"][index.as_u64().unwrap() as usize]["bufferView"]);
            bytes.as_chunks::<4>().0.iter().map(|&word| u32::from_le_bytes(word)).collect()
        };
        let floats = |index: &Value| -> Vec<f32> { words(index).into_iter().map(f32::from_bits).collect() };
        let primitive = &json["meshes"][0]["primitives"][0];
        let attributes = &primitive["attributes"];
        Self {
            positions: floats(&attributes["POSITION"]).as_chunks::<3>().0.to_vec(),
            normals: floats(&attributes["NORMAL"]).as_chunks::<3>().0.to_vec(),
            uvs: floats(&attributes["TEXCOORD_0"]).as_chunks::<2>().0.to_vec(),
            triangles: words(&primitive["indices"]).as_chunks::<3>().0.to_vec(),
            texture: view(&json["images"][0]["bufferView"]).to_vec(),
            json,
        }
    }

    /// Fails unless the mesh is one closed, outward-facing body without idle or double vertices.
    pub(crate) fn assert_watertight(&self) {
        let mut places: Vec<[u32; 3]> =
            self.positions.iter().map(|place| place.map(|part| (part + 0.0).to_bits())).collect();
        places.sort_unstable();
        assert!(places.is_sorted_by(|a, b| a < b), "two vertices stand in one place");

        let mut edges: HashMap<(u32, u32), u32> = HashMap::new();
        let mut is_used = vec![false; self.positions.len()];
        for &[a, b, c] in &self.triangles {
            for (from, to) in [(a, b), (b, c), (c, a)] {
                assert_ne!(from, to);
                *edges.entry((from, to)).or_default() += 1;
                is_used[from as usize] = true;
            }
        }
        assert!(is_used.iter().all(|&is_used| is_used), "a vertex belongs to no triangle");
        for (&(from, to), &count) in &edges {
            assert_eq!(count, 1, "an edge is run along twice in one direction");
            assert!(edges.contains_key(&(to, from)), "an edge has one face only");
        }
        // A body without holes through it: vertices - edges + faces = 2.
        assert_eq!(self.positions.len() + self.triangles.len(), edges.len() / 2 + 2);

        let mut volume = 0.0;
        for triangle in &self.triangles {
            let [a, b, c] = triangle.map(|vertex| self.positions[vertex as usize].map(f64::from));
            let edge = |to: [f64; 3]| [to[0] - a[0], to[1] - a[1], to[2] - a[2]];
            let normal = cross(edge(b), edge(c));
            assert!(dot(normal, normal) > 0.0, "a triangle has no area");
            volume += dot(a, cross(b, c)) / 6.0;
        }
        assert!(volume > 0.0, "the faces look inward");
        for normal in &self.normals {
            let length = dot(normal.map(f64::from), normal.map(f64::from)).sqrt();
            assert!((length - 1.0).abs() < 1e-5, "a normal has length {length}");
        }
    }

    /// Smallest and largest coordinate along an axis, in metres.
    pub(crate) fn span(&self, axis: usize) -> (f32, f32) {
        let along = self.positions.iter().map(|place| place[axis]);
        (along.clone().fold(f32::MAX, f32::min), along.fold(f32::MIN, f32::max))
    }

    /// The vertices of the relief: those that do not lie in the plane of the base.
    pub(crate) fn relief(&self) -> impl Iterator<Item = (usize, [f32; 3])> {
        let base = self.span(2).0;
        self.positions.iter().copied().enumerate().filter(move |(_, place)| place[2] > base)
    }

    /// Height in metres of the relief's vertex nearest to this place, given as shares from the picture's top left.
    pub(crate) fn height_at(&self, right: f32, down: f32) -> f32 {
        let ((left, x_max), (bottom, y_max)) = (self.span(0), self.span(1));
        let (x, y) = (left + (x_max - left) * right, y_max - (y_max - bottom) * down);
        let nearest = self.relief().min_by(|(_, a), (_, b)| {
            let away = |place: &[f32; 3]| (place[0] - x).hypot(place[1] - y);
            away(a).total_cmp(&away(b))
        });
        nearest.unwrap().1[2]
    }
}

fn cross(a: [f64; 3], b: [f64; 3]) -> [f64; 3] {
    [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
}

fn dot(a: [f64; 3], b: [f64; 3]) -> f64 {
    a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
}
