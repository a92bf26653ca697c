//! Real photographs, where they are at hand: they are no part of the project.

use std::path::Path;

use tasks::providers::relief::{self, Params};

use super::glb::Glb;

#[test]
fn photographs_beside_the_repository_become_watertight() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/samples");
    let Ok(files) = std::fs::read_dir(&folder) else {
        println!("skipped: no photographs in ../shared/samples beside the repository");
        return;
    };
    for path in files.map(|file| file.unwrap().path()) {
        if !path.extension().is_some_and(|ending| ending == "png" || ending == "jpg") {
            continue;
        }
        let model = relief::make(&path, &Params { samples: 128, ..Params::default() }, &mut |_, _| {});
        Glb::read(&model.unwrap_or_else(|fault| panic!("{}: {fault}", path.display())).glb).assert_watertight();
    }
}
