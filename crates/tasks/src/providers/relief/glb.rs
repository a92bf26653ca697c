//! Writes binary glTF 2.0 (Khronos, glTF 2.0 specification, sections 3.6 and 4.4): one mesh, one material, one texture.

use serde_json::{Value, json};

use super::mesh::Mesh;

const ARRAY_BUFFER: u32 = 34_962;
const ELEMENT_ARRAY_BUFFER: u32 = 34_963;
const FLOAT: u32 = 5126;
const UNSIGNED_INT: u32 = 5125;
const LINEAR: u32 = 9729;
const LINEAR_MIPMAP_LINEAR: u32 = 9987;
const CLAMP_TO_EDGE: u32 = 33_071;

const MAGIC: u32 = u32::from_le_bytes(*b"glTF");
const VERSION: u32 = 2;
const JSON_CHUNK: u32 = u32::from_le_bytes(*b"JSON");
const BINARY_CHUNK: u32 = u32::from_le_bytes(*b"BIN\0");

/// The whole file, with the texture inside it.
pub(super) fn pack(mesh: &Mesh, texture_jpeg: &[u8]) -> Vec<u8> {
    let mut views = Views::default();
    views.add(size_of_val(mesh.positions.as_slice()), Some(ARRAY_BUFFER));
    views.add(size_of_val(mesh.normals.as_slice()), Some(ARRAY_BUFFER));
    views.add(size_of_val(mesh.uvs.as_slice()), Some(ARRAY_BUFFER));
    views.add(size_of_val(mesh.triangles.as_slice()), Some(ELEMENT_ARRAY_BUFFER));
    views.add(texture_jpeg.len(), None);
    let binary_bytes = views.bytes;

    let mut json = document(mesh, &views).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(4), b' ');
    let total_bytes = 12 + 8 + json.len() + 8 + binary_bytes;
    let mut glb = Vec::with_capacity(total_bytes);
    // The largest mesh and texture together stay below 100 MB, far from what 32 bits can say.
    put_words(&mut glb, [MAGIC, VERSION, total_bytes as u32, json.len() as u32, JSON_CHUNK]);
    glb.extend_from_slice(&json);
    put_words(&mut glb, [binary_bytes as u32, BINARY_CHUNK]);
    put_words(&mut glb, mesh.positions.iter().flatten().map(|value| value.to_bits()));
    put_words(&mut glb, mesh.normals.iter().flatten().map(|value| value.to_bits()));
    put_words(&mut glb, mesh.uvs.iter().flatten().map(|value| value.to_bits()));
    put_words(&mut glb, mesh.triangles.iter().flatten().copied());
    glb.extend_from_slice(texture_jpeg);
    glb.resize(total_bytes, 0);
    glb
}

fn put_words(glb: &mut Vec<u8>, words: impl IntoIterator<Item = u32>) {
    words.into_iter().for_each(|word| glb.extend_from_slice(&word.to_le_bytes()));
}

/// The slices of the binary chunk, laid one behind the other at multiples of four.
#[derive(Default)]
struct Views {
    bytes: usize,
    json: Vec<Value>,
}

impl Views {
    fn add(&mut self, bytes: usize, target: Option<u32>) {
        let mut view = json!({ "buffer": 0, "byteLength": bytes, "byteOffset": self.bytes });
        if let Some(target) = target {
            view["target"] = target.into();
        }
        self.json.push(view);
        self.bytes += bytes.next_multiple_of(4);
    }
}

/// The JSON chunk. Keys stand in alphabetical order, which the JSON crate keeps or makes, whatever its features: so the
/// bytes do not depend on them.
fn document(mesh: &Mesh, views: &Views) -> Value {
    let vertices = mesh.positions.len();
    let bound = |pick: fn(f32, f32) -> f32| {
        // Every vertex is counted, and the exact 32-bit value is written out in full.
        let bound = mesh.positions.iter().copied().reduce(|a, b| std::array::from_fn(|axis| pick(a[axis], b[axis])));
        bound.unwrap_or_default().map(f64::from)
    };
    let accessor = |view: u32, count: usize, kind: &str| json!({ "bufferView": view, "componentType": FLOAT, "count": count, "type": kind });
    let mut positions = accessor(0, vertices, "VEC3");
    positions["max"] = json!(bound(f32::max));
    positions["min"] = json!(bound(f32::min));
    let mut indices = accessor(3, mesh.triangles.len() * 3, "SCALAR");
    indices["componentType"] = UNSIGNED_INT.into();

    json!({
        "accessors": [positions, accessor(1, vertices, "VEC3"), accessor(2, vertices, "VEC2"), indices],
        "asset": { "generator": "Guildhall relief", "version": "2.0" },
        "bufferViews": views.json,
        "buffers": [{ "byteLength": views.bytes }],
        "images": [{ "bufferView": 4, "mimeType": "image/jpeg" }],
        "materials": [{
            "name": "picture",
            "pbrMetallicRoughness": {
                "baseColorTexture": { "index": 0 },
                "metallicFactor": 0,
                "roughnessFactor": 0.85,
            },
        }],
        "meshes": [{
            "name": "relief",
            "primitives": [{
                "attributes": { "NORMAL": 1, "POSITION": 0, "TEXCOORD_0": 2 },
                "indices": 3,
                "material": 0,
            }],
        }],
        "nodes": [{ "mesh": 0, "name": "relief" }],
        "samplers": [{
            "magFilter": LINEAR,
            "minFilter": LINEAR_MIPMAP_LINEAR,
            "wrapS": CLAMP_TO_EDGE,
            "wrapT": CLAMP_TO_EDGE,
        }],
        "scene": 0,
        "scenes": [{ "nodes": [0] }],
        "textures": [{ "sampler": 0, "source": 0 }],
    })
}
