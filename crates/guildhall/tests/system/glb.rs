//! A reader of binary glTF that shares no code with the writer: it takes the file apart by the specification (glTF 2.0,
//! sections 3 and 4) and judges the mesh by its edges alone.

use std::collections::HashMap;

use serde_json::Value;

const GLB: u32 = 0x4654_6C67;
const JSON: u32 = 0x4E4F_534A;
const BIN: u32 = 0x004E_4942;
const UNSIGNED_SHORT: u64 = 5123;
const UNSIGNED_INT: u64 = 5125;
const FLOAT: u64 = 5126;
const TRIANGLES: u64 = 4;

/// One mesh of triangles.
#[derive(Debug)]
pub(crate) struct Mesh {
    pub(crate) positions: Vec<[f32; 3]>,
    pub(crate) triangles: Vec<[u32; 3]>,
}

impl Mesh {
    /// Reads the only primitive of the only mesh.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        assert_eq!(word(bytes, 0), GLB, "it is no GLB");
        assert_eq!(word(bytes, 4), 2, "glTF 2.0");
        assert_eq!(word(bytes, 8) as usize, bytes.len(), "the header tells the file's length");
        let (json, rest) = chunk(&bytes[12..], JSON);
        let (bin, rest) = chunk(rest, BIN);
        assert!(rest.is_empty(), "two chunks and no more");
        let json: Value = serde_json::from_slice(json).expect("the JSON chunk is JSON");

        let primitive = &json["meshes"][0]["primitives"][0];
        assert_eq!(primitive["mode"].as_u64().unwrap_or(TRIANGLES), TRIANGLES);
        let positions = Accessor::find(&json, bin, &primitive["attributes"]["POSITION"], 12);
        assert_eq!(positions.component, FLOAT);
        let positions = positions.elements().map(|e| [0, 4, 8].map(|at| f32::from_bits(word(e, at)))).collect();

        let kind = json["accessors"][index(&primitive["indices"])]["componentType"].as_u64();
        let width = if kind == Some(UNSIGNED_SHORT) { 2 } else { 4 };
        let indices = Accessor::find(&json, bin, &primitive["indices"], width);
        let indices: Vec<u32> = match indices.component {
            UNSIGNED_SHORT => indices.elements().map(|e| u32::from(u16::from_le_bytes([e[0], e[1]]))).collect(),
            UNSIGNED_INT => indices.elements().map(|e| word(e, 0)).collect(),
            other => panic!("indices of the type {other}"),
        };
        let (triangles, left) = indices.as_chunks::<3>();
        assert!(left.is_empty(), "whole triangles");
        Self { positions, triangles: triangles.to_vec() }
    }

    /// Every edge is shared by exactly two faces that run along it in opposite directions, no vertex lies idle, and the
    /// volume within is positive: the faces look outward.
    pub(crate) fn assert_watertight(&self) {
        assert!(!self.triangles.is_empty(), "an empty mesh");
        let mut edges: HashMap<(u32, u32), u32> = HashMap::new();
        let mut is_used = vec![false; self.positions.len()];
        for triangle in &self.triangles {
            let [a, b, c] = *triangle;
            assert!(a != b && b != c && c != a, "a triangle without area: {triangle:?}");
            for (from, to) in [(a, b), (b, c), (c, a)] {
                *edges.entry((from, to)).or_default() += 1;
                is_used[from as usize] = true;
            }
        }
        for (&(from, to), &count) in &edges {
            assert_eq!(count, 1, "the edge {from} to {to} is run along {count} times");
            assert!(edges.contains_key(&(to, from)), "the edge {from} to {to} is open");
        }
        assert!(is_used.iter().all(|is_used| *is_used), "a vertex belongs to no face");
        assert!(self.volume() > 0.0, "the faces look inward");
    }

    /// In cubic metres, by the divergence theorem.
    fn volume(&self) -> f64 {
        let at = |index: u32| self.positions[index as usize].map(f64::from);
        let sixth = |&[a, b, c]: &[u32; 3]| {
            let ([ax, ay, az], [bx, by, bz], [cx, cy, cz]) = (at(a), at(b), at(c));
            ax * (by * cz - bz * cy) + ay * (bz * cx - bx * cz) + az * (bx * cy - by * cx)
        };
        self.triangles.iter().map(sixth).sum::<f64>() / 6.0
    }
}

/// The elements of one accessor, where they lie in the binary chunk.
struct Accessor<'a> {
    bytes: &'a [u8],
    component: u64,
    count: usize,
    width: usize,
    stride: usize,
}

impl<'a> Accessor<'a> {
    fn find(json: &Value, bin: &'a [u8], at: &Value, width: usize) -> Self {
        let accessor = &json["accessors"][index(at)];
        let view = &json["bufferViews"][index(&accessor["bufferView"])];
        let number = |value: &Value| value.as_u64().unwrap_or(0) as usize;
        let start = number(&view["byteOffset"]) + number(&accessor["byteOffset"]);
        let end = number(&view["byteOffset"]) + number(&view["byteLength"]);
        let component = accessor["componentType"].as_u64().expect("a component type");
        let stride = view["byteStride"].as_u64().map_or(width, |stride| stride as usize);
        Self { bytes: &bin[start..end], component, count: number(&accessor["count"]), width, stride }
    }

    fn elements(&self) -> impl Iterator<Item = &'a [u8]> {
        let (bytes, width, stride) = (self.bytes, self.width, self.stride);
        (0..self.count).map(move |element| &bytes[element * stride..element * stride + width])
    }
}

fn index(value: &Value) -> usize {
    value.as_u64().expect("an index") as usize
}

fn chunk(bytes: &[u8], kind: u32) -> (&[u8], &[u8]) {
    let length = word(bytes, 0) as usize;
    assert_eq!(word(bytes, 4), kind, "the kind of the chunk");
    assert_eq!(length % 4, 0, "chunks are aligned to four bytes");
    bytes[8..].split_at(length)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}
