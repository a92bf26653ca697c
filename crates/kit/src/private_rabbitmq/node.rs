//! The node: its state with its secrets and its configuration, made once; its ports; and the environment in which every
//! program of it runs.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::binaries::{self, Binaries};
use super::server::{BROKER_PROGRAMS, EPMD_PROGRAMS};
use super::{RABBITMQ, StartError, USER};
use crate::ports::{self, Held};
use crate::private_server::account::Account;
use crate::private_server::confine::confine;
use crate::private_server::home::Home;
use crate::private_server::log::Log;
use crate::private_server::{PlaceError, leftovers};

/// How often, and how long after each other, the ports of the last start are looked at before others are taken: two seconds.
const LOOKS_MAX: u32 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Held by every thread that runs a part of the node; with the last of them the directory is free.
#[derive(Debug)]
pub(super) struct Node {
    home: Home,
    account: Account,
    binaries: Binaries,
    ports: Ports,
    /// Held, not read: the node's ports stay its own while one of its programs restarts.
    _held: [Held; 3],
    password: String,
    log: Log,
}

/// All of 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) amqp: u16,
    /// Erlang's distribution, by which `rabbitmqctl` speaks to the node.
    pub(super) distribution: u16,
    /// The node's own port mapper: the machine's one would know both nodes of two brokers by the same name.
    pub(super) epmd: u16,
}

impl Node {
    /// Claims the directory, ends what an earlier owner left running there, and makes the state at the first start;
    /// blocking.
    ///
    /// # Errors
    /// As [`StartError`] says.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, StartError> {
        let home = Home::claim(data_dir, &RABBITMQ)?;
        let account = home.account()?;
        let binaries = binaries::find(&account)?;
        let state = home.state();
        leftovers::end(&state, RABBITMQ.name, &BROKER_PROGRAMS, Signal::SIGKILL)?;
        leftovers::end(&state, RABBITMQ.name, &EPMD_PROGRAMS, Signal::SIGKILL)?;
        if !state.exists() {
            make_state(&home, &account)?;
        }
        let password_file = state.join("password");
        let password =
            fs::read_to_string(&password_file).map_err(PlaceError::io(format!("read {}", password_file.display())))?;
        let held = settle_ports(&home.dir().join("rabbitmq.ports"), || std::thread::sleep(LOOK_EVERY))?;
        let [amqp, distribution, epmd] = held.each_ref().map(Held::port);
        let ports = Ports { amqp, distribution, epmd };
        let log = Log::new(home.log());
        Ok(Self { home, account, binaries, ports, _held: held, password, log })
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    pub(super) fn password(&self) -> &str {
        &self.password
    }

    pub(super) fn log(&self) -> &Log {
        &self.log
    }

    pub(super) fn dir(&self) -> &Path {
        self.home.dir()
    }

    pub(super) fn state(&self) -> PathBuf {
        self.home.state()
    }

    pub(super) fn epmd(&self) -> Command {
        let mut command = self.command(&self.binaries.epmd());
        command.arg("-port").arg(self.ports.epmd.to_string()).arg("-address").arg(Ipv4Addr::LOCALHOST.to_string());
        command
    }

    pub(super) fn broker(&self) -> Command {
        self.command(&self.binaries.server())
    }

    pub(super) fn ctl(&self) -> Command {
        self.command(&self.binaries.ctl())
    }

    /// A program of the node, in the node's directory, by which it is known; the kernel kills it when we end. What the
    /// broker has confirmed is on the disk, so that its end by SIGKILL costs nothing.
    fn command(&self, program: &Path) -> Command {
        let state = self.home.state();
        let mut command = Command::new(program);
        confine(&mut command, &self.account, Signal::SIGKILL);
        command
            .current_dir(&state)
            .env("PATH", format!("{}:/usr/bin:/bin", self.binaries.erlang_dir().display()))
            // `rabbitmqctl` warns where names are not read as UTF-8.
            .env("LC_ALL", "C.UTF-8")
            // Where Erlang looks for the cookie.
            .env("HOME", &state)
            .env("ERL_EPMD_ADDRESS", Ipv4Addr::LOCALHOST.to_string())
            .env("ERL_EPMD_PORT", self.ports.epmd.to_string())
            // For every Erlang that is started, `rabbitmqctl` and the scripts' short-lived ones too: no port mapper of
            // their own, which would outlive us, and no distribution on other interfaces.
            .env("ERL_AFLAGS", "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}")
            .env("ERL_CRASH_DUMP_SECONDS", "0")
            // The script then becomes the server, instead of standing between it and our signals.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env("RABBITMQ_NODENAME", "guildhall@localhost")
            .env("RABBITMQ_NODE_IP_ADDRESS", Ipv4Addr::LOCALHOST.to_string())
            .env("RABBITMQ_NODE_PORT", self.ports.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.ports.distribution.to_string())
            // Any free one; by default eleven at a time would have to do for the whole machine.
            .env("RABBITMQ_CTL_DIST_PORT_MIN", "0")
            .env("RABBITMQ_CTL_DIST_PORT_MAX", "0")
            // The machine's own broker has its settings there; they are not for this one.
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_CONFIG_FILE", state.join("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", state.join("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", state.join("enabled_plugins"))
            .env("RABBITMQ_GENERATED_CONFIG_DIR", state.join("generated"))
            .env("RABBITMQ_MNESIA_BASE", state.join("mnesia"))
            .env("RABBITMQ_PID_FILE", state.join("pid"))
            .env("RABBITMQ_LOG_BASE", state.join("log"))
            // To its output, which we write to a log of ours, within a bound.
            .env("RABBITMQ_LOGS", "-")
            // It is small, and shares the machine.
            .env("RABBITMQ_MAX_NUMBER_OF_PROCESSES", "65536")
            .env("RABBITMQ_MAX_NUMBER_OF_ATOMS", "1048576")
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 2:2");
        command
    }
}

/// Makes the state: whole or not at all, and by us alone, before it is given to the user of RabbitMQ: a root must not
/// write later where that user could have laid a link.
fn make_state(home: &Home, account: &Account) -> Result<(), StartError> {
    let unfinished = home.dir().join("rabbitmq.new");
    if unfinished.exists() {
        // An earlier first start was killed on its way.
        fs::remove_dir_all(&unfinished).map_err(PlaceError::io(format!("clear {}", unfinished.display())))?;
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&unfinished)
        .map_err(PlaceError::io(format!("make {}", unfinished.display())))?;

    let password = random_word()?;
    // The first start makes the user of it. Its broker knows no `guest` then.
    let config = format!(
        "default_user = {USER}\n\
         default_pass = {password}\n\
         log.console.level = info\n\
         # Of memory: by default half a gigabyte may wait for its turn on the disk.\n\
         raft.wal_max_size_bytes = 67108864\n"
    );
    let files = [
        ("rabbitmq.conf", config, 0o600),
        ("enabled_plugins", "[].\n".to_owned(), 0o600),
        ("password", password, 0o600),
        // Whoever knows it may do anything as the user of RabbitMQ; Erlang demands that nobody else can read it.
        (".erlang.cookie", random_word()?, 0o400),
    ];
    for (name, text, mode) in files {
        let path = unfinished.join(name);
        File::options()
            .create_new(true)
            .write(true)
            .mode(mode)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(PlaceError::io(format!("write {}", path.display())))?;
        account.own(&path)?;
    }
    account.own(&unfinished)?;
    let state = home.state();
    fs::rename(&unfinished, &state).map_err(PlaceError::io(format!(
        "rename {} to {}",
        unfinished.display(),
        state.display()
    )))?;
    Ok(())
}

/// The ports of the last start where they are still free, so that clients find the broker again; else new ones. As in
/// [`Ports`], in its order.
fn settle_ports(note: &Path, pause: impl FnMut()) -> Result<[Held; 3], PlaceError> {
    let last = fs::read_to_string(note).unwrap_or_default();
    let last: Vec<u16> = last.split_whitespace().filter_map(|port| port.parse().ok()).collect();
    if let Ok(last) = last.try_into()
        && let Some(held) = take_again(last, pause)
    {
        return Ok(held);
    }
    let held = ports::free().map_err(PlaceError::io("find free ports for RabbitMQ"))?;
    let [amqp, distribution, epmd] = held.each_ref().map(Held::port);
    fs::write(note, format!("{amqp} {distribution} {epmd}\n"))
        .map_err(PlaceError::io(format!("write {}", note.display())))?;
    Ok(held)
}

/// Takes the ports of the last start. A broker that was killed with its owner is on its way out, unseen, and has them for a
/// moment yet; so they are looked at several times, with a `pause` in between.
fn take_again(ports: [u16; 3], mut pause: impl FnMut()) -> Option<[Held; 3]> {
    for _ in 0..LOOKS_MAX {
        match ports.map(|port| ports::take((Ipv4Addr::LOCALHOST, port).into())) {
            [Ok(amqp), Ok(distribution), Ok(epmd)] => return Some([amqp, distribution, epmd]),
            _ => pause(),
        }
    }
    None
}

/// 256 bits that nobody guesses, in hexadecimal digits.
fn random_word() -> Result<String, PlaceError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(io::Error::other).map_err(PlaceError::io("draw a random number"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn numbers(held: &[Held; 3]) -> [u16; 3] {
        held.each_ref().map(Held::port)
    }

    #[test]
    fn ports_of_the_last_start_are_waited_for_a_while_and_then_others_are_taken() {
        let dir = tempfile::tempdir().expect("a directory");
        let note = dir.path().join("ports");
        let held = settle_ports(&note, || panic!("there is nothing to wait for")).expect("ports");
        let first = numbers(&held);
        // Beside what holds them, so that nobody else comes by them.
        let mut dying = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, first[1])).expect("its server may listen"));
        drop(held);

        let held = settle_ports(&note, || {
            drop(dying.take());
            // A process that another test is about to start may have it for a moment yet.
            std::thread::sleep(LOOK_EVERY);
        })
        .expect("ports");

        assert_eq!(numbers(&held), first);
        let _stranger = TcpListener::bind((Ipv4Addr::LOCALHOST, first[1])).expect("its server may listen");
        drop(held);
        let mut looks = 0;

        let others = settle_ports(&note, || looks += 1).map(|held| numbers(&held)).expect("ports");

        assert_eq!(looks, LOOKS_MAX);
        assert!(!others.contains(&first[1]));
        assert_eq!(numbers(&settle_ports(&note, || ()).expect("ports")), others);
    }
}
