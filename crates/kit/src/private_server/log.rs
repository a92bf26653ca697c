//! What a server says: written to its log within a bound, and its last lines kept for whoever must explain why it died.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

/// The log and its forerunner (`<name>.log.1`) have at most this many bytes each.
const BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Longer lines (a statement with its parameters) are cut into pieces.
const LINE_BYTES_MAX: u64 = 16 * 1024;

const LAST_LINES: usize = 8;

/// Shared by the pumps of a server's successive lives.
#[derive(Debug, Clone)]
pub struct Log(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Option<File>,
    written: u64,
    last: VecDeque<String>,
}

impl Log {
    pub fn new(path: PathBuf) -> Self {
        let written = fs::metadata(&path).map_or(0, |there| there.len());
        Self(Arc::new(Mutex::new(Inner { path, file: None, written, last: VecDeque::new() })))
    }

    pub fn path(&self) -> PathBuf {
        self.0.lock().path.clone()
    }

    /// Copies `output` until it ends, which it does when the last process of the server has ended.
    ///
    /// # Errors
    /// No thread could be started.
    pub fn pump(&self, output: impl Read + Send + 'static) -> io::Result<JoinHandle<()>> {
        let log = self.clone();
        std::thread::Builder::new().name("server-log".to_owned()).spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            // A server whose pipe is broken is a server that is gone: either way there is nothing more to read.
            while let Ok(1..) = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
                log.0.lock().take(&line);
                line.clear();
            }
        })
    }

    /// The last lines, oldest first.
    pub fn last_lines(&self) -> String {
        self.0.lock().last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

impl Inner {
    fn take(&mut self, line: &[u8]) {
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(String::from_utf8_lossy(line).trim_end().to_owned());
        if let Err(error) = self.write(line) {
            // Draining goes on: a full disk must not make the server wait for its log.
            tracing::debug!(%error, "a line of a private server's log was lost");
            self.file = None;
        }
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.written >= BYTES_MAX {
            self.file = None;
            fs::rename(&self.path, forerunner(&self.path))?;
            self.written = 0;
        }
        let file = match &mut self.file {
            Some(file) => file,
            // For our user's eyes only: an error may repeat what somebody sent.
            none => none.insert(File::options().create(true).append(true).mode(0o600).open(&self.path)?),
        };
        file.write_all(line)?;
        self.written += line.len() as u64;
        Ok(())
    }
}

fn forerunner(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_log_keeps_its_bound_its_last_lines_and_its_owners_privacy() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("postgres.log");
        let log = Log::new(path.clone());
        let lines: String = (0..200_000).map(|n| format!("{n:0>99}\n")).collect();

        log.pump(io::Cursor::new(lines.into_bytes())).expect("a thread").join().expect("no panic");

        for file in [&path, &forerunner(&path)] {
            let bytes = fs::metadata(file).expect("a file").len();
            assert!(bytes <= BYTES_MAX + LINE_BYTES_MAX, "{} has {bytes} bytes", file.display());
            let mode = fs::metadata(file).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{} is for others too", file.display());
        }
        assert_eq!(fs::read_dir(dir.path()).expect("a directory").count(), 2);
        assert!(log.last_lines().ends_with("199999"), "{}", log.last_lines());
    }
}
