//! The private Postgres against every way in which machines and people treat it. The tests hold for root and for an
//! ordinary user alike; what only a root can meet is said so where it is skipped.

#![allow(clippy::disallowed_methods, reason = "tests have settings and background work of their own")]
#![allow(clippy::unwrap_used, reason = "what a test prepares works, or the test fails")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kit::private_postgres::{Options, PlaceError, PrivatePostgres, StartError};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

/// No promise, but a bound on waiting for what never comes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes this test binary the owner of a Postgres that other tests kill; see `owner`.
const OWNER_OF: &str = "GUILDHALL_TEST_OWNER_OF";

#[tokio::test]
async fn the_second_start_finds_what_the_first_has_written() {
    let data = DataDir::new();
    let first = data.start().await;
    run(&first, "create table t (id int)").await;
    run(&first, "insert into t values (1)").await;
    first.stop().await;

    assert!(data.processes().is_empty(), "the server has ended");
    assert!(!data.home().join("postgres.socket").exists(), "its socket is gone");

    let second = data.start().await;
    assert_eq!(count(&second, "t").await, 1);
    second.stop().await;
}

#[tokio::test]
async fn a_killed_server_is_restarted_in_place_with_its_rows() {
    let data = DataDir::new();
    let postgres = data.start().await;
    let url = postgres.url();
    run(&postgres, "create table t (id int)").await;
    run(&postgres, "insert into t values (1)").await;
    let mut session = PgConnection::connect(&url).await.unwrap();

    let killed = data.postmaster();
    kill(killed, Signal::SIGKILL).unwrap();

    data.restarted(&url, killed).await;
    assert!(session.ping().await.is_err(), "the old session has ended with its server");
    assert_eq!(postgres.url(), url);
    assert_eq!(count(&postgres, "t").await, 1);
    postgres.stop().await;
}

#[tokio::test]
async fn three_deaths_within_a_minute_are_told_with_their_reason() {
    let data = DataDir::new();
    let postgres = data.start().await;
    let url = postgres.url();
    let mut killed = Pid::from_raw(0);
    for _ in 0..3 {
        data.restarted(&url, killed).await;
        killed = data.postmaster();
        kill(killed, Signal::SIGKILL).unwrap();
    }

    let reason = tokio::time::timeout(PATIENCE, postgres.died()).await.expect("it gives up");

    assert!(reason.contains("died 3 times within a minute") && reason.contains("SIGKILL"), "{reason}");
    assert!(reason.contains("postgres.log"), "{reason}");
    assert!(data.processes().is_empty());
    postgres.stop().await;
}

#[tokio::test]
async fn killing_the_owner_leaves_no_process_and_loses_no_acknowledged_row() {
    let data = DataDir::new();
    let (mut owner, url) = owner_of(&data);
    let mut session = PgConnection::connect(&url).await.unwrap();
    session.execute("create table t (id int)").await.unwrap();
    let writer = tokio::spawn(async move {
        let mut acknowledged = 0_i64;
        while session.execute("insert into t values (1)").await.is_ok() {
            acknowledged += 1;
        }
        acknowledged
    });
    eventually(async || {
        let mut reader = PgConnection::connect(&url).await.unwrap();
        rows(&mut reader, "t").await > 100
    })
    .await;

    owner.kill().unwrap();
    owner.wait().unwrap();

    eventually(async || data.processes().is_empty()).await;
    let acknowledged = writer.await.unwrap();
    let next = PrivatePostgres::start(Options { durable: true, ..data.options() }).await.unwrap();
    let found = count(&next, "t").await;
    // The last one may have been committed and its word lost.
    assert!((acknowledged..=acknowledged + 1).contains(&found), "{acknowledged} acknowledged, {found} found");
    next.stop().await;
}

#[tokio::test]
async fn a_second_start_is_refused_and_names_the_holder() {
    let data = DataDir::new();
    let (mut owner, _url) = owner_of(&data);

    let refusal = PrivatePostgres::start(data.options()).await.unwrap_err();

    assert!(
        matches!(&refusal, StartError::Place(PlaceError::InUse { pid, .. }) if *pid == owner.id().to_string()),
        "{refusal}"
    );
    assert!(refusal.to_string().contains("GUILDHALL_DATA_DIR"), "{refusal}");
    owner.kill().unwrap();
    owner.wait().unwrap();
}

#[tokio::test]
async fn a_stale_pid_that_now_is_a_stranger_s_stops_nothing() {
    let data = DataDir::new();
    data.start().await.stop().await;
    let cluster = data.home().join("postgres");
    // Of the same user: another's process Postgres would not take for its own.
    let mut stranger = data.as_owner(Command::new("cat").stdin(Stdio::piped())).spawn().unwrap();
    fs::write(
        cluster.join("postmaster.pid"),
        format!("{}\n{}\n1\n5432\n\n\n\nready\n", stranger.id(), cluster.display()),
    )
    .unwrap();

    data.start().await.stop().await;

    assert!(stranger.try_wait().unwrap().is_none(), "the stranger lives on");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[tokio::test]
async fn a_left_over_server_is_ended_before_the_next_starts() {
    let data = DataDir::new();
    let postgres = data.start().await;
    run(&postgres, "create table t (id int)").await;
    // The same server once more, with nobody to own it: what is left where the kernel cannot end it with us.
    let arguments = fs::read(format!("/proc/{}/cmdline", data.postmaster())).unwrap();
    postgres.stop().await;
    let socket_dir = data.home().join("postgres.socket");
    fs::create_dir(&socket_dir).unwrap();
    let mut left_over = data.spawn_postgres(&arguments, &socket_dir);
    let pid = Pid::from_raw(left_over.id().cast_signed());
    let pid_file = data.home().join("postgres/postmaster.pid");
    eventually(async || fs::read_to_string(&pid_file).is_ok_and(|text| text.contains("ready"))).await;

    let next = data.start().await;

    assert!(left_over.try_wait().unwrap().is_some(), "it has ended");
    assert_ne!(data.postmaster(), pid);
    assert_eq!(count(&next, "t").await, 0);
    next.stop().await;
}

#[tokio::test]
async fn another_major_version_s_cluster_is_refused_with_the_way_out() {
    let data = DataDir::new();
    data.start().await.stop().await;
    let version = data.home().join("postgres/PG_VERSION");
    fs::write(&version, "9\n").unwrap();

    let refusal = PrivatePostgres::start(data.options()).await.unwrap_err();

    assert!(matches!(refusal, StartError::OtherMajor { cluster_major: 9, .. }), "{refusal}");
    for way_out in ["pg_upgrade", "GUILDHALL_PG_BIN", "Install Postgres 9"] {
        assert!(refusal.to_string().contains(way_out), "{refusal}");
    }
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_no_hindrance() {
    let mut data = DataDir::new();
    data.path = data.path.join("d".repeat(120)).join("with spaces and ünïcode, 100 %");

    let postgres = data.start().await;

    assert!(postgres.url().contains("host=/tmp/guildhall-"), "{}", postgres.url());
    run(&postgres, "create table t (id int)").await;
    assert_eq!(count(&postgres, "t").await, 0);
    let socket_dir = PathBuf::from(socket_dir(&postgres.url()));
    assert_eq!(fs::metadata(&socket_dir).unwrap().permissions().mode() & 0o777, 0o700);
    postgres.stop().await;
    assert!(!socket_dir.exists());
}

#[tokio::test]
async fn a_root_s_closed_directory_gets_its_cluster_elsewhere_and_says_so() {
    if !geteuid().is_root() {
        // An ordinary user's Postgres is that user, whom no mode keeps out.
        return;
    }
    let data = DataDir::new();
    fs::set_permissions(&data.path, fs::Permissions::from_mode(0o700)).unwrap();

    let first = data.start().await;
    run(&first, "create table t (id int)").await;
    first.stop().await;

    assert!(data.home().starts_with("/var/lib/guildhall"), "{}", data.home().display());
    let note = fs::read_to_string(data.home().join("data_directory")).unwrap();
    assert_eq!(note.trim(), data.path.to_str().unwrap());
    let second = data.start().await;
    assert_eq!(count(&second, "t").await, 0, "the table is there");
    second.stop().await;
}

#[tokio::test]
async fn a_first_start_that_was_killed_leaves_nothing_in_the_way() {
    let data = DataDir::new();
    fs::create_dir(data.path.join("postgres.new")).unwrap();
    fs::write(data.path.join("postgres.new/PG_VERSION"), "15\n").unwrap();

    data.start().await.stop().await;

    assert!(!data.path.join("postgres.new").exists());
}

#[tokio::test]
async fn binaries_that_do_not_serve_are_named_with_the_setting() {
    let data = DataDir::new();
    let options = Options { bin_dir: Some(data.path.clone()), ..data.options() };

    let refusal = PrivatePostgres::start(options).await.unwrap_err();

    assert!(refusal.to_string().contains("GUILDHALL_PG_BIN"), "{refusal}");
    assert!(refusal.to_string().contains("has no `postgres`"), "{refusal}");
}

/// A process for other tests to kill: it holds a private Postgres, tells its URL and waits for the end of its input.
#[tokio::test]
#[ignore = "other tests start it, in a process of its own"]
async fn owner() {
    let Some(path) = setting(OWNER_OF) else { return };
    let options = Options { data_dir: path.into(), bin_dir: pg_bin(), durable: true };
    let postgres = PrivatePostgres::start(options).await.unwrap();
    eprintln!("ready {}", postgres.url());
    tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await.unwrap().unwrap();
    postgres.stop().await;
}

/// Starts `owner` in a process of its own; gives its URL when it is ready.
#[expect(clippy::zombie_processes, reason = "the tests that take the child wait for it")]
fn owner_of(data: &DataDir) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "owner", "--ignored", "--nocapture", "--test-threads=1"])
        .env(OWNER_OF, &data.path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut said = String::new();
    loop {
        let start = said.len();
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "the owner ended: {said}");
        if let Some((_, url)) = said[start..].split_once("ready ") {
            return (child, url.trim().to_owned());
        }
    }
}

/// A data directory of one test. Removed with what was put elsewhere in its stead.
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
        Self { path: root.path().canonicalize().unwrap(), root }
    }

    fn options(&self) -> Options {
        // A cluster without fsync survives all that is done here but a power cut, and is made much sooner.
        Options { data_dir: self.path.clone(), bin_dir: pg_bin(), durable: false }
    }

    async fn start(&self) -> PrivatePostgres {
        PrivatePostgres::start(self.options()).await.unwrap()
    }

    /// The directory that holds the cluster.
    fn home(&self) -> PathBuf {
        match fs::read_to_string(self.path.join("postgres.location")) {
            Ok(note) => note.lines().next().unwrap().into(),
            Err(_) => self.path.clone(),
        }
    }

    fn postmaster(&self) -> Pid {
        let text = fs::read_to_string(self.home().join("postgres/postmaster.pid")).unwrap_or_default();
        Pid::from_raw(text.lines().next().and_then(|line| line.parse().ok()).unwrap_or(0))
    }

    /// Waits until a server other than `old` answers. In that order: `old` may take a last session while it is dying.
    async fn restarted(&self, url: &str, old: Pid) {
        let is_new = |pid: Pid| pid != old && pid.as_raw() != 0;
        eventually(async || is_new(self.postmaster()) && PgConnection::connect(url).await.is_ok()).await;
    }

    /// Every process that works in the cluster, as the kernel sees it.
    fn processes(&self) -> Vec<PathBuf> {
        let cluster = self.home().join("postgres");
        let of_cluster = |process: &PathBuf| fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd == cluster);
        fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path()).filter(of_cluster).collect()
    }

    /// Runs the server of these arguments as the owner of the cluster, and as nobody's ward.
    fn spawn_postgres(&self, cmdline: &[u8], socket_dir: &Path) -> Child {
        let owner = fs::metadata(self.home().join("postgres")).unwrap();
        if geteuid().is_root() {
            chown(socket_dir, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        let mut arguments = cmdline.split(|byte| *byte == 0).filter(|argument| !argument.is_empty());
        let mut command = Command::new(OsStr::from_bytes(arguments.next().unwrap()));
        // Even the empty value of `listen_addresses=` stands within its argument, so none is lost above.
        command.args(arguments.map(OsStr::from_bytes)).stderr(Stdio::null());
        self.as_owner(&mut command).spawn().unwrap()
    }

    /// Lets a command run as the user that the cluster belongs to.
    fn as_owner<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let owner = fs::metadata(self.home().join("postgres")).unwrap();
        if geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid());
        }
        command.current_dir("/")
    }
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

async fn run(postgres: &PrivatePostgres, sql: &'static str) {
    PgConnection::connect(&postgres.url()).await.unwrap().execute(sql).await.unwrap();
}

async fn count(postgres: &PrivatePostgres, table: &str) -> i64 {
    rows(&mut PgConnection::connect(&postgres.url()).await.unwrap(), table).await
}

async fn rows(connection: &mut PgConnection, table: &str) -> i64 {
    let sql = sqlx::AssertSqlSafe(format!("select count(*) from {table}"));
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
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

fn socket_dir(url: &str) -> &str {
    let (_, query) = url.split_once("host=").unwrap();
    query.split('&').next().unwrap()
}

fn pg_bin() -> Option<PathBuf> {
    setting("GUILDHALL_PG_BIN").map(PathBuf::from)
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
