//! The private RabbitMQ against every way in which machines, people and tests treat it. The tests hold for root and for
//! an ordinary user alike.

#![allow(clippy::disallowed_methods, reason = "tests have settings and background work of their own")]
#![allow(clippy::unwrap_used, reason = "what a test prepares works, or the test fails")]

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use kit::private_rabbitmq::{CtlError, Options, PlaceError, PrivateRabbitMq, StartError};
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// No promise, but a bound on waiting for what never comes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Makes this test binary the owner of a RabbitMQ that other tests kill; see `owner`.
const OWNER_OF: &str = "GUILDHALL_TEST_OWNER_OF";

#[tokio::test]
async fn it_listens_on_loopback_alone_as_an_ordinary_user_whose_secrets_nobody_guesses() {
    let data = DataDir::new();
    let broker = data.start().await;
    let mut seen = data.listeners();
    {
        // While the control program runs, too: it is a node of its own.
        let asked = broker.ctl(&["list_queues"]);
        tokio::pin!(asked);
        loop {
            tokio::select! {
                answer = &mut asked => { answer.unwrap(); break; }
                () = tokio::time::sleep(Duration::from_millis(5)) => seen.extend(data.listeners()),
            }
        }
    }

    let elsewhere: Vec<_> = seen.iter().filter(|(address, _)| !address.is_loopback()).collect();
    assert!(elsewhere.is_empty(), "it listens on {elsewhere:?}");
    // The broker, its distribution, its port mapper (on IPv6 too), and the control program.
    assert!(seen.len() >= 4, "{seen:?}");
    for process in data.processes() {
        assert_ne!(fs::metadata(&process).unwrap().uid(), 0, "{} runs as root", process.display());
    }
    let state = data.home().join("rabbitmq");
    for (name, mode) in [("password", 0o600), ("rabbitmq.conf", 0o600), (".erlang.cookie", 0o400)] {
        assert_eq!(fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777, mode, "{name}");
    }
    assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    let port = port_of(&broker);
    for stranger in ["guest:guest", "guildhall:guildhall", "guildhall:guest"] {
        let url = format!("amqp://{stranger}@127.0.0.1:{port}");
        assert!(Connection::connect(&url, ConnectionProperties::default()).await.is_err(), "{stranger} is let in");
    }
    broker.stop().await;
}

#[tokio::test]
async fn two_stand_side_by_side_and_know_nothing_of_each_other() {
    let (one, other) = (DataDir::new(), DataDir::new());
    let (first, second) = tokio::join!(one.start(), other.start());

    declare(&channel(&first.amqp_url()).await, "only_here").await;

    assert_eq!(first.ctl(&["list_queues", "name"]).await.unwrap().lines().last(), Some("only_here"));
    assert!(!second.ctl(&["list_queues", "name"]).await.unwrap().contains("only_here"));
    let refusal = second.ctl(&["delete_queue", "only_here"]).await.unwrap_err();
    assert!(matches!(&refusal, CtlError::Failed { command, .. } if command == "delete_queue only_here"), "{refusal}");
    let stolen = first.amqp_url().replace(&port_of(&first), &port_of(&second));
    assert!(Connection::connect(&stolen, ConnectionProperties::default()).await.is_err(), "one password for both");
    tokio::join!(first.stop(), second.stop());
}

#[tokio::test]
async fn confirmed_messages_survive_a_kill_and_the_broker_is_back_on_its_port() {
    let data = DataDir::new();
    let broker = data.start().await;
    let url = broker.amqp_url();
    let pid = *broker.pid().borrow();
    let queue = channel(&url).await;
    declare(&queue, "kept").await;
    for text in ["first", "second"] {
        publish(&queue, "kept", text).await;
    }
    settle(&broker).await;

    broker.kill().await;
    broker.ready().await.unwrap();

    assert_ne!(*broker.pid().borrow(), pid);
    assert_eq!(broker.amqp_url(), url);
    let queue = channel(&url).await;
    assert_eq!(take(&queue, "kept").await.as_deref(), Some("first"));
    assert_eq!(take(&queue, "kept").await.as_deref(), Some("second"));
    broker.stop().await;
}

#[tokio::test]
async fn what_was_stopped_leaves_no_process_and_is_found_again_by_the_next_start() {
    let data = DataDir::new();
    let broker = data.start().await;
    let url = broker.amqp_url();
    let queue = channel(&url).await;
    declare(&queue, "kept").await;
    publish(&queue, "kept", "here").await;

    broker.stop().await;

    assert!(data.processes().is_empty(), "{:?}", data.processes());
    let next = data.start().await;
    assert_eq!(next.amqp_url(), url, "port and password are the same");
    assert_eq!(take(&channel(&url).await, "kept").await.as_deref(), Some("here"));
    next.stop().await;
}

#[tokio::test]
async fn a_paused_broker_answers_nothing_and_goes_on_when_it_is_resumed() {
    let data = DataDir::new();
    let broker = data.start().await;
    let queue = channel(&broker.amqp_url()).await;
    declare(&queue, "kept").await;

    broker.pause();
    let sent = publish(&queue, "kept", "late");
    tokio::pin!(sent);
    eventually(async || is_stopped(&broker)).await;
    assert!(futures::poll!(&mut sent).is_pending(), "a frozen broker has confirmed");

    broker.resume();
    sent.await;
    assert_eq!(take(&queue, "kept").await.as_deref(), Some("late"));
    broker.stop().await;
}

#[tokio::test]
async fn a_port_mapper_that_died_is_back_and_knows_the_broker() {
    let data = DataDir::new();
    let broker = data.start().await;
    let mapper = data.process_of("epmd").unwrap();

    kill(mapper, Signal::SIGKILL).unwrap();

    eventually(async || data.process_of("epmd").is_some_and(|pid| pid != mapper)).await;
    eventually(async || broker.ctl(&["list_queues"]).await.is_ok()).await;
    broker.stop().await;
}

#[tokio::test]
async fn killing_the_owner_leaves_no_process_and_a_second_owner_is_refused_until_then() {
    let data = DataDir::new();
    let mut owner = Owner::of(&data);
    let url = owner.await_word("ready ");
    let queue = channel(&url).await;
    declare(&queue, "kept").await;
    publish(&queue, "kept", "here").await;
    let refusal = PrivateRabbitMq::start(data.options()).await.unwrap_err();
    assert!(
        matches!(&refusal, StartError::Place(PlaceError::InUse { pid, .. }) if *pid == owner.child.id().to_string()),
        "{refusal}"
    );
    owner.child.stdin.as_mut().unwrap().write_all(b"settle\n").unwrap();
    owner.await_word("settled");

    owner.child.kill().unwrap();
    owner.child.wait().unwrap();

    eventually(async || data.processes().is_empty()).await;
    let next = data.start().await;
    assert_eq!(next.amqp_url(), url);
    assert_eq!(take(&channel(&url).await, "kept").await.as_deref(), Some("here"));
    next.stop().await;
}

#[tokio::test]
async fn a_left_over_node_is_ended_before_the_next_starts() {
    let data = DataDir::new();
    let broker = data.start().await;
    // The same two processes once more, with nobody to own them: what is left where the kernel cannot end them with us.
    let snapshots = [data.snapshot("epmd"), data.snapshot("beam.smp")];
    broker.stop().await;
    let mut left_over: Vec<Child> = snapshots.into_iter().map(|mut command| command.spawn().unwrap()).collect();
    let port: u16 = data.amqp_port();
    eventually(async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await;

    let next = data.start().await;

    for child in &mut left_over {
        assert!(child.try_wait().unwrap().is_some(), "{} lives on", child.id());
    }
    assert_eq!(port_of(&next), port.to_string());
    next.stop().await;
}

/// A process for other tests to kill: it holds a private RabbitMQ, tells its URL, settles it with each line of its input
/// and waits for the end of that.
#[tokio::test]
#[ignore = "other tests start it, in a process of its own"]
async fn owner() {
    let Some(path) = std::env::var(OWNER_OF).ok() else { return };
    let broker = PrivateRabbitMq::start(Options { data_dir: path.into() }).await.unwrap();
    eprintln!("ready {}", broker.amqp_url());
    let line = || tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()));
    while line().await.unwrap().unwrap() > 0 {
        settle(&broker).await;
        eprintln!("settled");
    }
    broker.stop().await;
}

/// The test `owner` in a process of its own.
struct Owner {
    child: Child,
    said: BufReader<ChildStderr>,
}

impl Owner {
    fn of(data: &DataDir) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "owner", "--ignored", "--nocapture", "--test-threads=1"])
            .env(OWNER_OF, &data.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(child.stderr.take().unwrap());
        Self { child, said }
    }

    /// Waits for a line with the word, and gives what follows it there.
    fn await_word(&mut self, word: &str) -> String {
        let mut said = String::new();
        loop {
            let start = said.len();
            assert_ne!(self.said.read_line(&mut said).unwrap(), 0, "the owner ended: {said}");
            if let Some((_, rest)) = said[start..].split_once(word) {
                return rest.trim().to_owned();
            }
        }
    }
}

async fn channel(url: &str) -> Channel {
    let connection = Connection::connect(url, ConnectionProperties::default()).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    channel
}

/// Declares a quorum queue, which the one node is quorum enough for.
async fn declare(channel: &Channel, name: &str) {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    channel.queue_declare(name.into(), durable, arguments).await.unwrap();
}

/// RabbitMQ writes within half a second, and not before it answers, that a quorum queue is there: one declared just
/// before a kill is lost with what it holds. So this asks for it.
async fn settle(broker: &PrivateRabbitMq) {
    broker.ctl(&["eval", "dets:sync(ra_directory_reverse)."]).await.unwrap();
}

async fn publish(channel: &Channel, queue: &str, text: &str) {
    let durable = BasicProperties::default().with_delivery_mode(2);
    let confirmation = channel
        .basic_publish("".into(), queue.into(), BasicPublishOptions::default(), text.as_bytes(), durable)
        .await
        .unwrap();
    assert!(confirmation.await.unwrap().is_ack(), "{text} was refused");
}

async fn take(channel: &Channel, queue: &str) -> Option<String> {
    let no_ack = BasicGetOptions { no_ack: true };
    let message = channel.basic_get(queue.into(), no_ack).await.unwrap()?;
    Some(String::from_utf8(message.delivery.data.clone()).unwrap())
}

fn port_of(broker: &PrivateRabbitMq) -> String {
    let url = broker.amqp_url();
    url.rsplit(':').next().unwrap().split('/').next().unwrap().to_owned()
}

fn is_stopped(broker: &PrivateRabbitMq) -> bool {
    let pid = broker.pid().borrow().unwrap();
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") T "))
}

/// A data directory of one test, with a name that has to be quoted. Removed with what was put elsewhere in its stead.
struct DataDir {
    path: PathBuf,
    root: tempfile::TempDir,
}

impl DataDir {
    fn new() -> Self {
        let root = tempfile::Builder::new()
            .prefix("guildhall-test-")
            .permissions(fs::Permissions::from_mode(0o711))
            .tempdir()
            .unwrap();
        Self { path: root.path().canonicalize().unwrap().join("of this test"), root }
    }

    fn options(&self) -> Options {
        Options { data_dir: self.path.clone() }
    }

    async fn start(&self) -> PrivateRabbitMq {
        PrivateRabbitMq::start(self.options()).await.unwrap()
    }

    /// The directory that holds the node.
    fn home(&self) -> PathBuf {
        match fs::read_to_string(self.path.join("rabbitmq.location")) {
            Ok(note) => note.lines().next().unwrap().into(),
            Err(_) => self.path.clone(),
        }
    }

    fn amqp_port(&self) -> u16 {
        let ports = fs::read_to_string(self.home().join("rabbitmq.ports")).unwrap();
        ports.split(' ').next().unwrap().parse().unwrap()
    }

    /// Every process that works in the node's directory, as the kernel sees it.
    fn processes(&self) -> Vec<PathBuf> {
        let state = self.home().join("rabbitmq");
        let of_node = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == state);
        fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(of_node).collect()
    }

    fn process_of(&self, program: &str) -> Option<Pid> {
        let of_program =
            |process: &&PathBuf| fs::read_link(process.join("exe")).is_ok_and(|exe| exe.ends_with(program));
        let process = self.processes().iter().find(of_program)?.clone();
        Some(Pid::from_raw(process.file_name()?.to_str()?.parse().ok()?))
    }

    /// A command that runs a process of the node again as it runs now, as nobody's ward.
    fn snapshot(&self, program: &str) -> Command {
        let process = PathBuf::from(format!("/proc/{}", self.process_of(program).unwrap()));
        let mut command = Command::new(fs::read_link(process.join("exe")).unwrap());
        let words = |name| -> Vec<Vec<u8>> {
            let text: Vec<u8> = fs::read(process.join(name)).unwrap();
            let text = text.strip_suffix(b"\0").unwrap_or(&text).to_vec();
            text.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
        };
        command.args(words("cmdline")[1..].iter().map(|word| OsStr::from_bytes(word))).env_clear();
        for variable in words("environ") {
            let equals = variable.iter().position(|byte| *byte == b'=').unwrap();
            command.env(OsStr::from_bytes(&variable[..equals]), OsStr::from_bytes(&variable[equals + 1..]));
        }
        let owner = fs::metadata(self.home().join("rabbitmq")).unwrap();
        if geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        command.current_dir(self.home().join("rabbitmq"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Every address and port that a process of the node listens on.
    fn listeners(&self) -> BTreeSet<(IpAddr, u16)> {
        let sockets: BTreeSet<String> = self.processes().iter().flat_map(|process| sockets_of(process)).collect();
        ["tcp", "tcp6"]
            .iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
            .flat_map(|table| table.lines().skip(1).map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| {
                let fields: Vec<&str> = line.split_whitespace().collect();
                // 0A is LISTEN.
                (fields[3] == "0A" && sockets.contains(fields[9])).then(|| address_of(fields[1]))
            })
            .collect()
    }
}

/// The inodes of a process's sockets.
fn sockets_of(process: &Path) -> Vec<String> {
    let Ok(files) = fs::read_dir(process.join("fd")) else { return Vec::new() };
    files
        .filter_map(|file| fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect()
}

/// Reads `0100007F:1F90`: an address in words of the machine's byte order, and a port.
fn address_of(text: &str) -> (IpAddr, u16) {
    let (address, port) = text.split_once(':').unwrap();
    let words: Vec<u8> = (0..address.len() / 8)
        .flat_map(|word| u32::from_str_radix(&address[word * 8..word * 8 + 8], 16).unwrap().to_ne_bytes())
        .collect();
    let address = match <[u8; 4]>::try_from(words.as_slice()) {
        Ok(octets) => IpAddr::V4(Ipv4Addr::from(octets)),
        Err(_) => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(words.as_slice()).unwrap())),
    };
    (address, u16::from_str_radix(port, 16).unwrap())
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Only after a test that failed is anything still running.
        for process in self.processes() {
            let pid = process.file_name().and_then(OsStr::to_str).and_then(|name| name.parse().ok());
            let _already_gone = pid.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
        }
        let home = self.home();
        if !home.starts_with(self.root.path().canonicalize().unwrap()) {
            let _already_gone = fs::remove_dir_all(home);
        }
    }
}

/// For what no signal tells: looks again until it holds, or fails.
async fn eventually(mut holds: impl AsyncFnMut() -> bool) {
    let look = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, look).await.expect("it comes to hold in time");
}
