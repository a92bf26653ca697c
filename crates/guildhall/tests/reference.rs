//! The references in `docs/` say what the code says. `GUILDHALL_TEST_WRITE=1 cargo test -p guildhall --test reference`
//! writes them anew.

use std::{fs, path::PathBuf, process::Command};

const PERMISSIONS: &str = "# Who may do what

Printed from `crates/kit/src/identity/roles.rs` and from what each gRPC method in `proto/` demands. `own` reaches one's own
rows, `any` everybody's; a stranger's row is not there (404) for who has `own` alone. A `service` is a program: it may do
what the scope of its key names.

";

#[test]
fn the_permissions_are_those_of_the_code() {
    hold("permissions.md", &format!("{PERMISSIONS}{}", kit::identity::roles::markdown()));
}

#[test]
fn the_default_settings_are_those_of_the_code() {
    let output = Command::new(env!("CARGO_BIN_EXE_guildhall")).args(["check-config", "--print-defaults"]).output();
    let output = output.expect("the binary starts");
    assert!(output.status.success());
    hold("guildhall.default.toml", &String::from_utf8(output.stdout).expect("UTF-8"));
}

fn hold(name: &str, printed: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(name);
    if is_to_be_written() {
        fs::create_dir_all(path.parent().expect("it has one")).expect("a folder");
        fs::write(&path, printed).expect("it is written");
    }
    let kept = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == printed,
        "docs/reference/{name} is not what the code prints: run\n\
         GUILDHALL_TEST_WRITE=1 cargo test -p guildhall --test reference"
    );
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variable, which no service knows")]
fn is_to_be_written() -> bool {
    std::env::var_os("GUILDHALL_TEST_WRITE").is_some()
}
