//! The child process of the tests' slots.

fn main() -> std::process::ExitCode {
    worker::slot::main(&tasks::registry(true))
}
