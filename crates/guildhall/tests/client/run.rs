//! Runs the binary as a person with a home of their own would.

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

use crate::server::{EMAIL, PASSWORD, Server};

/// A person: a home, and a server to talk to.
pub(crate) struct Person {
    pub(crate) home: TempDir,
    url: String,
}

impl Person {
    pub(crate) fn at(url: &str) -> Self {
        Self { home: tempfile::tempdir().unwrap(), url: url.to_owned() }
    }

    pub(crate) fn signed_in(server: &Server) -> Self {
        let person = Self::at(&server.url());
        let output = person.run_with_input(&["login", "--email", EMAIL], &format!("{PASSWORD}\n"));
        assert_eq!(output.code, 0, "{}", output.stderr);
        person
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_guildhall"));
        command.args(args).current_dir(self.home.path()).env_clear();
        command.env("HOME", self.home.path()).env("GUILDHALL_URL", &self.url).env("TERM", "xterm-256color");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ended {
        self.command(args).output().unwrap().into()
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &str) -> Ended {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    pub(crate) fn session_file(&self) -> PathBuf {
        self.home.path().join(".config/guildhall/session.json")
    }

    /// Pictures in the person's home, by name; what is in them is their name.
    pub(crate) fn pictures(&self, names: &[&str]) {
        for name in names {
            std::fs::write(self.home.path().join(name), name).unwrap();
        }
    }
}

/// What a command left behind.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ended {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|fault| panic!("{fault}: {self:?}"))
    }
}
