//! Postgres: a pool that acts as one service's role, and the migrations of one service's schema.
//!
//! Every service owns a schema and a database role of its own; the role may use that schema and nothing else, so that
//! a query into another service's tables fails in production and not in review. Roles belong to a whole cluster, so
//! their names derive from the database's: `<database>_jobs`. They cannot log in: a connection logs in as the URL says
//! and then takes the service's role on.

mod rights;

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, Row as _,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{Fail, Kind};
use rights::Rights;

/// A service's place in the database: its schema, and what its role's name ends in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Schema(&'static str);

impl Schema {
    /// `name` is a constant of the service: lower case letters only, so that it is safe in SQL text.
    pub const fn new(name: &'static str) -> Self {
        let bytes = name.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            assert!(bytes[at].is_ascii_lowercase(), "a schema's name is lower case letters");
            at += 1;
        }
        Self(name)
    }

    pub const fn name(self) -> &'static str {
        self.0
    }
}

/// Has Postgres end a session, and with it what it locks, some fifteen seconds after the machine at its other end has
/// vanished: by its own default a lock of a machine that lost its power is held for more than two hours. A process that only
/// stands still keeps its session, since its kernel answers; [`IDLE_MAX`] is for that. Sockets within one machine know
/// nothing of it, and need not.
const NOTICE_THE_VANISHED: &str = "set tcp_keepalives_idle = '5s'; set tcp_keepalives_interval = '3s'; \
                                   set tcp_keepalives_count = 3; set tcp_user_timeout = '15s'";

/// How long Postgres may take to say that a connection which is given back is good. The pool itself would wait for ever: a
/// call that gave up on a server which vanished would take its connection with it, and soon there would be none left.
const GOOD_WITHIN: Duration = Duration::from_secs(3);

/// A pool whose connections act as the service's own role. Postgres ends a transaction in which nothing was asked for
/// [`IDLE_MAX`]: a process that is frozen in the middle of one would hold its locks against all others until it wakes.
///
/// # Errors
/// `database_unavailable`; a URL that does not parse is `config.database_url`.
pub async fn connect(url: &str, schema: Schema, connections_max: u32) -> Result<PgPool, Fail> {
    let options = options(url, schema.name())?;
    let take_role = format!(
        "set role {}; {NOTICE_THE_VANISHED}; set idle_in_transaction_session_timeout = '{IDLE_MAX}'",
        quoted(&role_name(&options, schema)),
    );
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(5))
        .after_connect(move |connection, _| {
            let take_role = take_role.clone();
            Box::pin(async move { connection.execute(AssertSqlSafe(take_role)).await.map(|_| ()) })
        })
        .after_release(|connection, _| {
            Box::pin(async move {
                let silent = |_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into());
                tokio::time::timeout(GOOD_WITHIN, connection.ping()).await.unwrap_or_else(silent).map(|()| true)
            })
        })
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// How long a transaction may stand still. Far longer than any of ours does between two statements, since none waits for
/// anything but the database.
const IDLE_MAX: &str = "10s";

/// Creates the service's schema and role where they are missing, and applies its migrations as that role. Safe to call
/// from several processes at once.
///
/// # Errors
/// As [`migrate_all`].
pub async fn migrate(url: &str, schema: Schema, migrator: &Migrator) -> Result<(), Fail> {
    migrate_all(url, &[(schema, migrator)]).await.map(drop)
}

/// As [`migrate`], for several services, whose schemas and roles are made before any migration is applied; tells how many
/// migrations each still lacked. Where all is there already, it needs no right but to take the roles on.
///
/// # Errors
/// `database_unavailable`; `config.database_login`, `config.database_missing`; `config.database_rights` when the URL's user
/// may not create what is missing, with what an administrator has to run; `internal` when a migration fails or was changed
/// after it had been applied.
pub async fn migrate_all(url: &str, services: &[(Schema, &Migrator)]) -> Result<Vec<(Schema, usize)>, Fail> {
    let options = options(url, "migrate")?;
    let mut connection = log_in(&options).await?;
    create_roles_and_schemas(&mut connection, &places(&options, services)).await?;
    let mut lacked = Vec::with_capacity(services.len());
    for (schema, migrator) in services {
        // The migrator makes its table anew each time, and Postgres would notice each time that it is there.
        let set_out = format!(
            "set role {}; set search_path to {}; set client_min_messages = 'warning'; {NOTICE_THE_VANISHED}",
            quoted(&role_name(&options, *schema)),
            schema.name()
        );
        connection.execute(AssertSqlSafe(set_out)).await?;
        let applied = applied(&mut connection, *schema).await?;
        migrator.run(&mut connection).await.map_err(Fail::internal)?;
        connection.execute("reset role").await?;
        let count = migrator.iter().filter(|migration| !applied.contains(&migration.version)).count();
        lacked.push((*schema, count));
    }
    connection.close().await?;
    Ok(lacked)
}

/// Refuses a service's schema that lacks a migration of this version, and a login that may not act as a service. A schema
/// that has more is a newer version's, which keeps to what this one needs.
///
/// # Errors
/// `config.schema` and `config.database_rights` with the way out; `config.database_login`, `config.database_missing`;
/// `database_unavailable`.
pub async fn check(url: &str, services: &[(Schema, &Migrator)]) -> Result<(), Fail> {
    let options = options(url, "check")?;
    let mut connection = log_in(&options).await?;
    let rights = Rights::find(&mut connection, &places(&options, services)).await?;
    if !rights.lack_a_place() && !rights.statements().is_empty() {
        return Err(rights.lacking());
    }
    for (schema, migrator) in services {
        let applied = if rights.lack_a_place() {
            Vec::new()
        } else {
            let take_role = format!("set role {}", quoted(&role_name(&options, *schema)));
            connection.execute(AssertSqlSafe(take_role)).await?;
            applied(&mut connection, *schema).await?
        };
        if let Some(missing) = migrator.iter().find(|migration| !applied.contains(&migration.version)) {
            return Err(Fail::new(
                Kind::Conflict,
                "config.schema",
                format!(
                    "The schema `{}` is older than this version: it lacks the migration {:04}. Run `guildhall migrate` first.",
                    schema.name(),
                    missing.version
                ),
            ));
        }
    }
    connection.close().await?;
    Ok(())
}

/// The statements that an administrator has to run before [`migrate_all`] can go on with a login that may create nothing;
/// none where the roles, schemas and grants are there.
///
/// # Errors
/// As [`check`], but for what is missing.
pub async fn lacks(url: &str, services: &[(Schema, &Migrator)]) -> Result<Vec<String>, Fail> {
    let options = options(url, "lacks")?;
    let mut connection = log_in(&options).await?;
    let rights = Rights::find(&mut connection, &places(&options, services)).await?;
    connection.close().await?;
    Ok(rights.statements())
}

/// Why `url` cannot be the URL of a database, as a clause; nothing for one that can.
pub fn url_fault(url: &str) -> Option<&'static str> {
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    let is_url = is_postgres && PgConnectOptions::from_str(url).is_ok();
    (!is_url).then_some("must be as postgresql://user:password@host/database")
}

/// A database server as it answers, for readiness and for `doctor`.
#[derive(Debug)]
pub struct Server {
    /// As it says itself: `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: String,
    pub major: u32,
    /// Whether the URL's user may create the services' roles and schemas. Where they are there already, it need not: see
    /// [`lacks`].
    pub may_create_roles: bool,
    pub may_create_schemas: bool,
}

/// Asks the server who it is, over a connection of its own.
///
/// # Errors
/// `database_unavailable`, `config.database_login`, `config.database_missing`; a URL that does not parse is
/// `config.database_url`.
pub async fn inspect(url: &str) -> Result<Server, Fail> {
    let mut connection = log_in(&options(url, "inspect")?).await?;
    let row = sqlx::query(
        "select current_setting('server_version') as version,
                current_setting('server_version_num')::int / 10000 as major,
                (select rolsuper or rolcreaterole from pg_catalog.pg_roles where rolname = current_user) as may_create_roles,
                has_database_privilege(current_database(), 'create') as may_create_schemas",
    )
    .fetch_one(&mut connection)
    .await?;
    connection.close().await?;
    Ok(Server {
        version: row.try_get("version")?,
        major: row.try_get::<i32, _>("major")?.unsigned_abs(),
        may_create_roles: row.try_get("may_create_roles")?,
        may_create_schemas: row.try_get("may_create_schemas")?,
    })
}

/// Tells how many connections a service's pool has, in use and idle, as `guildhall_db_pool_connections`.
pub fn measure(schema: Schema, pool: &PgPool) {
    let idle = pool.num_idle();
    let used = usize::try_from(pool.size()).unwrap_or(usize::MAX).saturating_sub(idle);
    for (state, count) in [("idle", idle), ("used", used)] {
        let gauge = metrics::gauge!("guildhall_db_pool_connections", "role" => schema.name(), "state" => state);
        gauge.set(u32::try_from(count).unwrap_or(u32::MAX));
    }
}

/// A service's place in one database.
#[derive(Debug, Clone)]
struct Place {
    schema: Schema,
    role: String,
}

fn places(options: &PgConnectOptions, services: &[(Schema, &Migrator)]) -> Vec<Place> {
    services.iter().map(|(schema, _)| Place { schema: *schema, role: role_name(options, *schema) }).collect()
}

/// # Errors
/// Of what the settings say wrongly: `config.database_login`, `config.database_missing`. `database_unavailable`.
async fn log_in(options: &PgConnectOptions) -> Result<PgConnection, Fail> {
    PgConnection::connect_with(options).await.map_err(|error| {
        let code = match &error {
            sqlx::Error::Database(error) => error.code().unwrap_or_default().into_owned(),
            _ => String::new(),
        };
        match code.as_str() {
            // invalid_authorization_specification and invalid_password.
            "28000" | "28P01" => Fail::forbidden(
                "config.database_login",
                "Postgres does not let this user in: check the user and the password in database_url.",
            )
            .caused_by(error),
            // invalid_catalog_name.
            "3D000" => Fail::not_found(
                "config.database_missing",
                "There is no such database: create it, or check the name in database_url.",
            )
            .caused_by(error),
            _ => error.into(),
        }
    })
}

/// The migrations that were applied, by a connection that acts as the service.
async fn applied(connection: &mut PgConnection, schema: Schema) -> Result<Vec<i64>, Fail> {
    let sql = format!("select version from {}._sqlx_migrations where success", schema.name());
    match sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).fetch_all(connection).await {
        Ok(applied) => Ok(applied),
        // There is no such table: nothing was ever applied.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

async fn create_roles_and_schemas(connection: &mut PgConnection, places: &[Place]) -> Result<(), Fail> {
    // One transaction under a lock of the whole cluster's migrations: `create role` knows no `if not exists`.
    let begin = "begin; select pg_advisory_xact_lock(hashtextextended('guildhall.migrate', 0))";
    connection.execute(begin).await?;
    let rights = Rights::find(connection, places).await?;
    match rights.make_good(connection).await {
        Ok(()) => {
            connection.execute("commit").await?;
            Ok(())
        }
        // insufficient_privilege
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => {
            Err(rights.lacking().caused_by(error))
        }
        Err(error) => Err(error.into()),
    }
}

fn options(url: &str, what: &str) -> Result<PgConnectOptions, Fail> {
    let options = PgConnectOptions::from_str(url)
        .map_err(|error| Fail::invalid("config.database_url", "The database URL does not parse.").caused_by(error))?;
    Ok(options.application_name(&format!("guildhall {what}")))
}

fn role_name(options: &PgConnectOptions, schema: Schema) -> String {
    let database = options.get_database().unwrap_or_else(|| options.get_username());
    format!("{database}_{}", schema.name())
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}
