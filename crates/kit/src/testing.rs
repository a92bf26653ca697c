//! Real servers for tests: Postgres, one private server a test process and a fresh database a test; RabbitMQ, a private
//! broker for whoever asks. Nothing is left behind, however the process ends. Only tests use this module; it panics where
//! a service would answer.
//!
//! ```no_run
//! # async fn example() {
//! let database = kit::testing::database("jobs").await;
//! sqlx::query("create table t (id int)").execute(database.pool()).await.unwrap();
//! # }
//! ```
//!
//! `GUILDHALL_PG_BIN` picks the binaries, and `GUILDHALL_TEST_DATABASE_URL` another server altogether, whose user must
//! be allowed to create databases; what a run made there is dropped by the next run.

#![expect(clippy::expect_used, clippy::panic, reason = "a test whose database cannot be had can only fail")]

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection as _};
use tokio::sync::{Mutex, OnceCell};

use crate::private_postgres::{self, Options, PrivatePostgres};
use crate::private_rabbitmq::{self, PrivateRabbitMq};

/// A test's own pool is small, since a server has a bounded number of sessions and many tests run at a time.
const POOL_CONNECTIONS_MAX: u32 = 5;

/// What has not come to be by then never does.
const NEVER_AFTER: Duration = Duration::from_secs(20);

/// Names begin with this, so that a shared server shows what may be dropped.
const PREFIX: &str = "guildhall_test";

static SERVER: OnceCell<Server> = OnceCell::const_new();
static TEMPLATES: Mutex<Option<HashMap<String, String>>> = Mutex::const_new(None);
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database that only one test knows.
#[derive(Debug)]
pub struct TestDatabase {
    url: String,
    pool: PgPool,
}

impl TestDatabase {
    /// Leads to the database as its server's superuser.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A pool of the test's own, as the superuser.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// An empty database; `name_hint` shows in its name.
///
/// # Panics
/// No Postgres is to be had.
pub async fn database(name_hint: &str) -> TestDatabase {
    let server = server().await;
    let name = fresh_name(name_hint);
    server.run(&format!("create database {name}")).await;
    server.open(&name)
}

/// Waits until some statement in a database waits for a lock.
///
/// # Panics
/// None ever does.
pub async fn something_waits(pool: &PgPool) {
    let question = "select exists (
       select from pg_locks
       join pg_stat_activity using (pid)
       where not granted and datname = current_database()
     )";
    let waits = async {
        while !sqlx::query_scalar::<_, bool>(question).fetch_one(pool).await.expect("a database that answers") {}
    };
    tokio::time::timeout(NEVER_AFTER, waits).await.expect("a statement that waits for a lock");
}

/// A database like the one that `migrate` makes of an empty one, whose URL it is given. It runs once a process and
/// `template` name; each test gets a copy, which takes some 30 ms whatever the migrations take.
///
/// Roles belong to the whole server, so a service's is named after its database (see [`crate::db`]): the copy gets
/// roles of its own, which own what the template's owned.
///
/// # Panics
/// No Postgres is to be had, or `migrate` fails.
pub async fn database_with<M, F, E>(template: &str, migrate: M) -> TestDatabase
where
    M: FnOnce(String) -> F,
    F: Future<Output = Result<(), E>>,
    E: std::fmt::Debug,
{
    let server = server().await;
    let source = {
        let mut templates = TEMPLATES.lock().await;
        let templates = templates.get_or_insert_default();
        match templates.get(template) {
            Some(source) => source.clone(),
            None => {
                let source = fresh_name(&format!("template_{template}"));
                server.run(&format!("create database {source}")).await;
                migrate(server.url(&source))
                    .await
                    .unwrap_or_else(|error| panic!("the template {template} cannot be migrated: {error:?}"));
                // A database with sessions in it cannot be copied.
                server.run(&format!("alter database {source} allow_connections false")).await;
                server
                    .run(&format!(
                        "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = '{source}'"
                    ))
                    .await;
                templates.insert(template.to_owned(), source.clone());
                source
            }
        }
    };
    let name = fresh_name(template);
    server.run(&format!("create database {name} template {source}")).await;
    server.inherit_roles(&source, &name).await;
    server.open(&name)
}

/// A broker of the caller's own, ready. It takes seconds of a core to start: tests that do not kill it should share one
/// and keep apart by virtual hosts.
///
/// # Panics
/// No RabbitMQ is to be had.
pub async fn rabbitmq() -> PrivateRabbitMq {
    let (data_dir, caretaker) = cared_for();
    let broker = PrivateRabbitMq::start(private_rabbitmq::Options { data_dir }).await;
    let broker = broker.unwrap_or_else(|error| panic!("no test broker: {error}"));
    caretaker.clear_at_our_end(broker.home());
    caretaker.stay();
    broker
}

/// A directory that servers run as other users may pass through; it is removed with what is in it when this process has
/// ended, however it ends.
///
/// # Panics
/// None can be made.
#[must_use]
pub fn directory() -> PathBuf {
    let (dir, caretaker) = cared_for();
    caretaker.stay();
    dir
}

fn cared_for() -> (PathBuf, Caretaker) {
    let dir = tempfile::Builder::new()
        .prefix("guildhall-test-")
        // A root's servers run as ordinary users, who have to pass through.
        .permissions(std::fs::Permissions::from_mode(0o711))
        .tempdir()
        .expect("a temporary directory can be made")
        .keep();
    let caretaker = Caretaker::start();
    caretaker.clear_at_our_end(&dir);
    (dir, caretaker)
}

/// Letters, digits and underscores alone, so that it needs no quotes and may stand in SQL.
fn fresh_name(hint: &str) -> String {
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let hint: String =
        hint.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' }).take(24).collect();
    format!("{PREFIX}_{}_{n}_{hint}", std::process::id())
}

async fn server() -> &'static Server {
    SERVER.get_or_init(Server::start).await
}

/// The server of this process. Statics are not dropped, so its end does not hang on ours being orderly: the kernel ends
/// a private one with us, and its caretaker then clears up.
#[derive(Debug)]
enum Server {
    Private(PrivatePostgres),
    /// Another's server, by its URL.
    Shared(String),
}

impl Server {
    async fn start() -> Self {
        if let Some(url) = setting("GUILDHALL_TEST_DATABASE_URL") {
            let server = Self::Shared(url);
            server.drop_leftovers().await;
            return server;
        }
        let (data_dir, caretaker) = cared_for();
        let options = Options { data_dir, bin_dir: setting("GUILDHALL_PG_BIN").map(PathBuf::from), durable: false };
        let postgres = PrivatePostgres::start(options).await.unwrap_or_else(|error| panic!("no test server: {error}"));
        caretaker.clear_at_our_end(&postgres.places().home);
        caretaker.clear_at_our_end(&postgres.places().socket_dir);
        caretaker.stay();
        Self::Private(postgres)
    }

    /// The URL of one of its databases.
    fn url(&self, database: &str) -> String {
        match self {
            Self::Private(postgres) => private_postgres::url(&postgres.places().socket_dir, database),
            Self::Shared(url) => {
                // Only the path is exchanged: `scheme://authority/path?query`.
                let (front, query) = url.split_once('?').map_or((url.as_str(), None), |(f, q)| (f, Some(q)));
                let (scheme, rest) = front.split_once("://").expect("GUILDHALL_TEST_DATABASE_URL is a URL");
                let authority = rest.split('/').next().unwrap_or_default();
                let query = query.map(|query| format!("?{query}")).unwrap_or_default();
                format!("{scheme}://{authority}/{database}{query}")
            }
        }
    }

    fn options(&self, database: &str) -> PgConnectOptions {
        PgConnectOptions::from_str(&self.url(database)).expect("GUILDHALL_TEST_DATABASE_URL is a Postgres URL")
    }

    fn open(&self, database: &str) -> TestDatabase {
        let pool = PgPoolOptions::new().max_connections(POOL_CONNECTIONS_MAX).connect_lazy_with(self.options(database));
        TestDatabase { url: self.url(database), pool }
    }

    async fn connect(&self, database: &str) -> PgConnection {
        PgConnection::connect_with(&self.options(database)).await.expect("the test server takes a connection")
    }

    async fn run(&self, sql: &str) {
        self.run_in("postgres", sql).await;
    }

    async fn run_in(&self, database: &str, sql: &str) {
        let mut connection = self.connect(database).await;
        sqlx::raw_sql(AssertSqlSafe(sql))
            .execute(&mut connection)
            .await
            .unwrap_or_else(|error| panic!("`{sql}` failed: {error}"));
        connection.close().await.expect("the test server closes a connection");
    }

    /// Gives `copy` a role for each of `source`'s, and what that one owns.
    async fn inherit_roles(&self, source: &str, copy: &str) {
        let sql = format!(
            "do $$ declare theirs text; ours text; begin
               for theirs in select rolname from pg_roles where starts_with(rolname, '{source}_') loop
                 ours := '{copy}' || substr(theirs, length('{source}') + 1);
                 execute format('create role %I nologin', ours);
                 execute format('grant %I to current_user', ours);
                 execute format('reassign owned by %I to %I', theirs, ours);
               end loop;
             end $$"
        );
        self.run_in(copy, &sql).await;
    }

    /// On a server that outlives us: drops the databases of test processes that have ended.
    async fn drop_leftovers(&self) {
        let mut connection = self.connect("postgres").await;
        let drops: Vec<(String, String)> = sqlx::query_as(
            "select datname::text, format('drop database if exists %I with (force)', datname)
             from pg_database where starts_with(datname, $1)
             union all
             select rolname::text, format('drop role if exists %I', rolname)
             from pg_roles where starts_with(rolname, $1)",
        )
        .bind(format!("{PREFIX}_"))
        .fetch_all(&mut connection)
        .await
        .expect("the databases can be listed");
        for (name, drop) in drops {
            let pid = name.split('_').nth(2).unwrap_or_default();
            if !Path::new("/proc").join(pid).exists() {
                // Another test process may be at the same.
                let _gone_either_way = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await;
            }
        }
    }
}

/// A shell that waits for our end, in whatever way it comes, and removes directories then.
struct Caretaker {
    child: std::process::Child,
    paths: std::process::ChildStdin,
}

impl Caretaker {
    /// It reads one path a line until we are gone. What the server is still writing is removed once more, until it is.
    const SCRIPT: &str = r#"
        set --
        while IFS= read -r path; do set -- "$@" "$path"; done
        tries=0
        while [ "$tries" -lt 100 ]; do
            rm -rf -- "$@" 2>/dev/null
            left=0
            for path; do [ ! -e "$path" ] || left=1; done
            [ "$left" = 1 ] || exit 0
            tries=$((tries + 1))
            sleep 0.1
        done"#;

    fn start() -> Self {
        let mut child = Command::new("/bin/sh")
            .args(["-c", Self::SCRIPT])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal ends the tests and not what clears up after them.
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
        let paths = child.stdin.take().expect("the pipe was asked for");
        Self { child, paths }
    }

    fn clear_at_our_end(&self, path: &Path) {
        use std::io::Write as _;
        writeln!(&self.paths, "{}", path.display()).expect("the caretaker listens");
    }

    /// The pipe is left open for as long as we live; only the kernel closes it.
    fn stay(self) {
        std::mem::forget(self.paths);
        drop(self.child);
    }
}

#[expect(clippy::disallowed_methods, reason = "these two are the tests' own, and no service knows them")]
fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}
