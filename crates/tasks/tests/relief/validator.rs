//! The judgement of the Khronos glTF validator, where it is installed.
//!
//! `GUILDHALL_GLTF_VALIDATOR` names a directory whose `node_modules` hold the npm package `gltf-validator`; `./dev test`
//! sets it. Without it this test says so and proves nothing.

use std::path::Path;
use std::process::Command;

use image::ExtendedColorType;
use serde_json::Value;
use tasks::providers::relief::Params;
use tasks::samples;

use super::pictures::{self, landscape};
use super::{coarse, fixture, make};

#[test]
fn the_khronos_validator_finds_neither_errors_nor_warnings() {
    #[expect(clippy::disallowed_methods, reason = "a tool of the test's, no setting of the product's")]
    let Some(validator) = std::env::var_os("GUILDHALL_GLTF_VALIDATOR") else {
        println!("skipped: GUILDHALL_GLTF_VALIDATOR is not set");
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    let mut keep = |picture: &[u8], params: &Params| {
        let path = directory.path().join(format!("{}.glb", files.len()));
        std::fs::write(&path, make(picture, params).unwrap().glb).unwrap();
        files.push(path);
    };
    for sample in samples::draw() {
        keep(&sample.bytes, &Params::default());
    }
    for name in ["lossy-alpha.webp", "animated.webp", "progressive-420.jpg"] {
        keep(&fixture(name), &coarse());
    }
    for (width, height) in [(1, 1), (1, 5000), (5000, 1), (37, 53), (640, 480)] {
        let picture = landscape(width, height);
        let png = pictures::png(&picture, width, height, ExtendedColorType::Rgb8);
        keep(&png, &coarse());
        keep(&png, &Params { samples: 16, depth_mm: 100.0, base_mm: 50.0, size_mm: 10.0, ..Params::default() });
        keep(&png, &Params { samples: 400, depth_mm: 0.5, base_mm: 0.5, size_mm: 1000.0, ..Params::default() });
    }

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/validate-gltf.mjs");
    let output = Command::new("node").arg(script).arg(validator).args(&files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let reports: Vec<Value> =
        serde_json::Deserializer::from_slice(&output.stdout).into_iter().map(|report| report.unwrap()).collect();
    assert_eq!(reports.len(), files.len());
    for report in reports {
        assert_eq!((&report["errors"], &report["warnings"]), (&0.into(), &0.into()), "{report}");
    }
}
