//! Processes and what they listen on, as `/proc` shows them.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

#[derive(Debug, Clone)]
pub(crate) struct Process {
    pid: u32,
    parent: u32,
    #[expect(dead_code, reason = "a failed test shows it")]
    command: String,
    /// In clock ticks since the machine started; with the pid it names a process for ever.
    started: u64,
}

impl Process {
    /// The children of a process, their children, and so on.
    pub(crate) fn family(of: u32) -> Vec<Self> {
        let entries = fs::read_dir("/proc").expect("/proc can be read");
        let mut strangers: Vec<Self> =
            entries.filter_map(|entry| Self::look(entry.ok()?.file_name().to_str()?.parse().ok()?)).collect();
        let mut known = BTreeSet::from([of]);
        let mut family = Vec::new();
        loop {
            let (found, others): (Vec<_>, Vec<_>) =
                strangers.into_iter().partition(|process| known.contains(&process.parent));
            if found.is_empty() {
                return family;
            }
            known.extend(found.iter().map(|process| process.pid));
            family.extend(found);
            strangers = others;
        }
    }

    /// None for one that has ended, also while nobody has waited for it.
    fn look(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may hold anything; the fields follow the last one.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        if fields.first() == Some(&"Z") {
            return None;
        }
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        Some(Self {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            command: String::from_utf8_lossy(&command).replace('\0', " "),
            started: fields.get(19)?.parse().ok()?,
        })
    }

    pub(crate) fn is_alive(&self) -> bool {
        Self::look(self.pid).is_some_and(|now| now.started == self.started)
    }

    /// The inodes of its sockets.
    fn sockets(&self) -> Vec<String> {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fd", self.pid)) else { return Vec::new() };
        files
            .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
            .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
            .collect()
    }
}

/// Every address and port that one of the processes listens on.
pub(crate) fn listeners(processes: &[Process]) -> BTreeSet<(IpAddr, u16)> {
    let sockets: BTreeSet<String> = processes.iter().flat_map(Process::sockets).collect();
    let tables = ["tcp", "tcp6"].iter().filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok());
    tables
        .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A is LISTEN.
            (fields[3] == "0A" && sockets.contains(fields[9])).then(|| address_of(fields[1]))
        })
        .collect()
}

/// Reads `0100007F:1F90`: an address in words of the machine's byte order, and a port.
fn address_of(text: &str) -> (IpAddr, u16) {
    let (address, port) = text.split_once(':').expect("an address and a port");
    let word = |at: usize| u32::from_str_radix(&address[at..at + 8], 16).expect("hexadecimal digits").to_ne_bytes();
    let bytes: Vec<u8> = (0..address.len()).step_by(8).flat_map(word).collect();
    let address = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).expect("16 bytes"))),
    };
    (address, u16::from_str_radix(port, 16).expect("hexadecimal digits"))
}
