//! Compiles `proto/` without `protoc`, and turns the `access` option of every method into a table.
//! A method that declares no access fails the build here.

#![expect(clippy::disallowed_methods, reason = "cargo tells a build script where things are by its environment")]

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf};

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MessageDescriptor, MethodDescriptor};

const FILES: [&str; 7] =
    ["access.proto", "auth.proto", "jobs.proto", "worker.proto", "admin.proto", "events.proto", "cloudevents.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let mut compiler = protox::Compiler::new([&root])?;
    compiler.include_imports(true).open_files(FILES)?;
    let pool = compiler.descriptor_pool();
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut table = String::from("&[\n");
    for service in pool.services() {
        for method in service.methods() {
            let need = need(&method)?;
            let path = format!("/{}/{}", service.full_name(), method.name());
            let streams = method.is_client_streaming() || method.is_server_streaming();
            writeln!(table, "    Method {{ path: {path:?}, need: {need}, streams: {streams} }},")?;
        }
    }
    table.push(']');
    fs::write(out.join("access_table.rs"), table)?;

    let mut builder = tonic_prost_build::configure().build_client(true).build_server(true).bytes(".");
    let mut masks = String::new();
    for message in pool.all_messages().filter(is_masked) {
        let module = message.package_name().split('.').nth(1).ok_or("a masked message is in no package of ours")?;
        let name = message.name();
        writeln!(
            masks,
            "impl std::fmt::Debug for {module}::{name} {{\n    \
                 fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        \
                     f.debug_struct({name:?}).finish_non_exhaustive()\n    \
                 }}\n\
             }}"
        )?;
        builder = builder.skip_debug([format!(".{}", message.full_name())]);
    }
    fs::write(out.join("masks.rs"), masks)?;

    let files = compiler.file_descriptor_set();
    fs::write(out.join("descriptor.bin"), files.encode_to_vec())?;
    builder.compile_fds(files)?;
    Ok(())
}

/// Fields that hold secrets, personal data, or what people wrote. A message that has one shows its name and nothing else:
/// whoever logs it can do no wrong.
const MASKED: [&str; 15] = [
    "email",
    "password",
    "new_password",
    "display_name",
    "remote_address",
    "user_agent",
    "access_token",
    "refresh_token",
    "key",
    "ticket",
    "args_json",
    "finalize_args_json",
    "result_json",
    "before_json",
    "after_json",
];

fn is_masked(message: &MessageDescriptor) -> bool {
    message.package_name().starts_with("guildhall.")
        && !message.is_map_entry()
        && message.fields().any(|field| MASKED.contains(&field.name()) && field.kind() == Kind::String)
}

fn need(method: &MethodDescriptor) -> Result<String, Box<dyn Error>> {
    let undeclared = || format!("{} declares no access: add `option (guildhall.access.v1.access)`", method.full_name());
    let extension =
        method.parent_pool().get_extension_by_name("guildhall.access.v1.access").ok_or("access.proto is missing")?;
    let options = method.options();
    if !options.has_extension(&extension) {
        return Err(undeclared().into());
    }
    let value = options.get_extension(&extension);
    let access: &DynamicMessage = value.as_message().ok_or_else(undeclared)?;
    let flag = |name| access.get_field_by_name(name).and_then(|v| v.as_bool()).unwrap_or(false);
    let permission =
        access.get_field_by_name("permission").and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default();
    match (flag("public"), flag("authenticated"), permission.as_str()) {
        (true, false, "") => Ok("Need::Public".into()),
        (false, true, "") => Ok("Need::Authenticated".into()),
        (false, false, permission) if permission.split(':').count() == 2 => {
            Ok(format!("Need::Permission({permission:?})"))
        }
        _ => Err(undeclared().into()),
    }
}
