//! `apart.json`: which processes there are at this moment, for tests, scripts and people. Written by rename, so that
//! nobody reads half of it; removed at the end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use kit::private_server::PlaceError;
use parking_lot::Mutex;
use serde::Serialize;

use crate::shape::Instance;

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct Told {
    path: PathBuf,
    http: String,
    /// By name; none when it has ended and takes no more.
    processes: Mutex<Option<BTreeMap<String, Entry>>>,
}

/// One process, without its number.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) name: String,
    role: &'static str,
    grpc: Option<String>,
    ops: Option<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    role: &'static str,
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ops: Option<String>,
}

#[derive(Serialize)]
struct File<'a> {
    http: &'a str,
    processes: Vec<&'a Entry>,
}

impl Process {
    /// One that is no role of ours.
    pub(crate) fn engine(name: &'static str) -> Self {
        Self { name: name.to_owned(), role: name, grpc: None, ops: None }
    }

    pub(crate) fn role(instance: &Instance) -> Self {
        Self {
            name: instance.name(),
            role: instance.role.as_str(),
            grpc: instance.grpc.map(|port| format!("https://127.0.0.1:{port}")),
            ops: Some(format!("http://127.0.0.1:{}", instance.ops)),
        }
    }
}

impl Told {
    /// Removes what an earlier life has left, and writes that nothing runs yet.
    pub(crate) fn begin(data_dir: &Path, http: String) -> Result<Self, PlaceError> {
        let path = data_dir.join("apart.json");
        let told = Self { path, http, processes: Mutex::new(Some(BTreeMap::new())) };
        let processes = told.processes.lock();
        told.write(processes.as_ref()).map_err(PlaceError::io(format!("write {}", told.path.display())))?;
        drop(processes);
        Ok(told)
    }

    pub(crate) fn http(&self) -> &str {
        &self.http
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The process runs under this number, or does not run.
    pub(crate) fn set(&self, process: &Process, pid: Option<u32>) -> io::Result<()> {
        let mut processes = self.processes.lock();
        let Some(there) = processes.as_mut() else { return Ok(()) };
        match pid {
            Some(pid) => {
                let entry = Entry { role: process.role, pid, grpc: process.grpc.clone(), ops: process.ops.clone() };
                there.insert(process.name.clone(), entry);
            }
            None => {
                there.remove(&process.name);
            }
        }
        self.write(processes.as_ref())
    }

    /// Takes it back for good.
    pub(crate) fn end(&self) {
        let mut processes = self.processes.lock();
        *processes = None;
        // One that is not there need not go.
        let _gone = fs::remove_file(&self.path);
    }

    fn write(&self, processes: Option<&BTreeMap<String, Entry>>) -> io::Result<()> {
        let Some(processes) = processes else { return Ok(()) };
        let file = File { http: &self.http, processes: processes.values().collect() };
        let unfinished = self.path.with_extension("json.new");
        fs::write(&unfinished, serde_json::to_vec_pretty(&file)?)?;
        fs::rename(&unfinished, &self.path)
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        self.end();
    }
}
