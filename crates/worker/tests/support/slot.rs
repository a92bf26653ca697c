//! The child process of the tests' slots.

mod tasks;

fn main() -> std::process::ExitCode {
    worker::slot::main(&tasks::registry())
}
