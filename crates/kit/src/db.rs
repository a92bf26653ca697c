//! Postgres: a pool that acts as one service's role, and the migrations of one service's schema.
//!
//! Every service owns a schema and a database role of its own; the role may use that schema and nothing else, so that
//! a query into another service's tables fails in production and not in review. Roles belong to a whole cluster, so
//! their names derive from the database's: `<database>_jobs`. They cannot log in: a connection logs in as the URL says
//! and then takes the service's role on.

use std::{str::FromStr as _, time::Duration};

use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, PgPool, Row as _,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgPoolOptions},
};

use crate::{Fail, Kind};

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
/// stands still keeps its session, since its kernel answers. Sockets
/// within one machine know nothing of it, and need not.
const NOTICE_THE_VANISHED: &str = "set tcp_keepalives_idle = '5s'; set tcp_keepalives_interval = '3s'; \
                                   set tcp_keepalives_count = 3; set tcp_user_timeout = '15s'";

/// How long Postgres may take to say that a connection which is given back is good. The pool itself would wait for ever: a
/// call that gave up on a server which vanished would take its connection with it, and soon there would be none left.
const GOOD_WITHIN: Duration = Duration::from_secs(3);

/// A pool whose connections act as the service's own role.
///
/// # Errors
/// `database_unavailable`; a URL that does not parse is `config.database_url`.
pub async fn connect(url: &str, schema: Schema, connections_max: u32) -> Result<PgPool, Fail> {
    let options = options(url, schema.name())?;
    let take_role = format!("set role {}; {NOTICE_THE_VANISHED}", quoted(&role_name(&options, schema)));
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

/// Creates the service's schema and role where they are missing, and applies its migrations as that role. Safe to call
/// from several processes at once.
///
/// # Errors
/// `database_unavailable`; `config.database_rights` when the URL's user may not create roles or schemas;
/// `internal` when a migration fails or was changed after it had been applied.
pub async fn migrate(url: &str, schema: Schema, migrator: &Migrator) -> Result<(), Fail> {
    let options = options(url, "migrate")?;
    let role = quoted(&role_name(&options, schema));
    let mut connection = PgConnection::connect_with(&options).await?;
    create_role_and_schema(&mut connection, schema, &role).await?;
    let set_out = format!("set role {role}; set search_path to {}; {NOTICE_THE_VANISHED}", schema.name());
    connection.execute(AssertSqlSafe(set_out)).await?;
    migrator.run(&mut connection).await.map_err(Fail::internal)?;
    connection.close().await?;
    Ok(())
}

/// Refuses a service's schema that lacks a migration of this version. One that has more is a newer version's, which keeps
/// to what this one needs.
///
/// # Errors
/// `config.schema` with the way out; `database_unavailable`.
pub async fn check(url: &str, schema: Schema, migrator: &Migrator) -> Result<(), Fail> {
    let options = options(url, "check")?;
    let role = quoted(&role_name(&options, schema));
    let mut connection = PgConnection::connect_with(&options).await?;
    let applied = async {
        connection.execute(AssertSqlSafe(format!("set role {role}"))).await?;
        let sql = format!("select version from {}._sqlx_migrations where success", schema.name());
        sqlx::query_scalar::<_, i64>(AssertSqlSafe(sql)).fetch_all(&mut connection).await
    };
    let applied = match applied.await {
        Ok(applied) => applied,
        // There is no such role (22023 from `set role`), schema or table: nothing was ever applied.
        Err(sqlx::Error::Database(error))
            if error.code().is_some_and(|code| ["22023", "3F000", "42P01"].contains(&code.as_ref())) =>
        {
            Vec::new()
        }
        Err(error) => return Err(error.into()),
    };
    connection.close().await?;
    match migrator.iter().find(|migration| !applied.contains(&migration.version)) {
        None => Ok(()),
        Some(missing) => Err(Fail::new(
            Kind::Conflict,
            "config.schema",
            format!(
                "The schema `{}` is older than this version: it lacks the migration {:04}. Run `guildhall migrate` first.",
                schema.name(),
                missing.version
            ),
        )),
    }
}

/// A database server as it answers, for readiness and for `doctor`.
#[derive(Debug)]
pub struct Server {
    /// As it says itself: `15.18 (Debian 15.18-0+deb12u1)`.
    pub version: String,
    pub major: u32,
    /// Whether the URL's user may create the services' roles and schemas. Where they are there already, it need not.
    pub may_create_roles: bool,
    pub may_create_schemas: bool,
}

/// Asks the server who it is, over a connection of its own.
///
/// # Errors
/// `database_unavailable`; a URL that does not parse is `config.database_url`.
pub async fn inspect(url: &str) -> Result<Server, Fail> {
    let mut connection = PgConnection::connect_with(&options(url, "inspect")?).await?;
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

async fn create_role_and_schema(connection: &mut PgConnection, schema: Schema, role: &str) -> Result<(), Fail> {
    let name = schema.name();
    // One transaction under a lock of the whole cluster's migrations: `create role` knows no `if not exists`.
    let sql = format!(
        "begin;
         select pg_advisory_xact_lock(hashtextextended('guildhall.migrate', 0));
         do $$ begin
           if not exists (select from pg_roles where rolname = '{literal}') then create role {role} nologin; end if;
           if not pg_has_role(current_user, '{literal}', 'member') or current_setting('is_superuser') = 'off' then
             execute format('grant {role} to %I', current_user);
           end if;
           if not exists (select from pg_namespace where nspname = '{name}') then
             create schema {name} authorization {role};
           end if;
         end $$;
         commit;",
        literal = role.trim_matches('"').replace('\'', "''"),
    );
    connection.execute(AssertSqlSafe(sql)).await.map_err(|error| match &error {
        // 42501: insufficient_privilege.
        sqlx::Error::Database(db) if db.code().as_deref() == Some("42501") => Fail::forbidden(
            "config.database_rights",
            format!(
                "The database user may not create the role {role} or the schema `{name}`. Let an administrator run: \
                 create role {role} nologin; grant {role} to <user>; create schema {name} authorization {role};"
            ),
        )
        .caused_by(error),
        _ => error.into(),
    })?;
    Ok(())
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
