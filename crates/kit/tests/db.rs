//! What a service's connections to Postgres are good for when a machine vanishes, at this end or at the other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "bus/line.rs"]
mod line;

use std::time::Duration;

use kit::{
    Fail, Kind,
    db::{self, Schema},
    testing::{self, TestDatabase},
};

const SVC: Schema = Schema::new("svc");

async fn database() -> TestDatabase {
    let database = testing::database("vanished").await;
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(database.pool()).await.unwrap();
    let role = format!("create role {name}_svc nologin; grant {name}_svc to current_user");
    sqlx::raw_sql(sqlx::AssertSqlSafe(role)).execute(database.pool()).await.unwrap();
    database
}

#[tokio::test]
async fn a_session_ends_soon_after_the_machine_at_its_other_end() {
    let database = database().await;
    let pool = db::connect(database.url(), SVC, 1).await.unwrap();
    // Not their values, which a socket within one machine has none of.
    let set: Vec<String> = sqlx::query_scalar(
        "select name from pg_settings where source = 'session' and (name ~ '^tcp_keepalives' or name = 'tcp_user_timeout')
         order by name",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    let all = ["tcp_keepalives_count", "tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_user_timeout"];
    assert_eq!(set, all);
}

#[tokio::test]
async fn calls_that_gave_up_on_a_vanished_server_leave_connections_to_others() {
    const CONNECTIONS: u32 = 3;
    let database = database().await;
    let line = line::Line::to(database.url()).await;
    let pool = db::connect(line.url(), SVC, CONNECTIONS).await.unwrap();
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS {
        held.push(pool.acquire().await.unwrap());
    }
    line.cut();
    for mut connection in held {
        let answer = tokio::time::timeout(Duration::from_millis(50), sqlx::query("select").execute(&mut *connection));
        assert!(answer.await.is_err(), "nobody is there to answer");
    }
    // Within what any caller waits for a connection.
    sqlx::query("select").execute(&pool).await.unwrap();
}

/// A login that may create nothing, in a database of its own.
async fn plain_login(database: &TestDatabase) -> String {
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(database.pool()).await.unwrap();
    let sql = format!("create role {name}_plain login password 'plain'");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(database.pool()).await.unwrap();
    let mut url = url::Url::parse(database.url()).unwrap();
    url.set_username(&format!("{name}_plain")).unwrap();
    url.set_password(Some("plain")).unwrap();
    url.to_string()
}

#[tokio::test]
async fn what_an_administrator_is_told_to_run_is_all_that_a_plain_login_needs() {
    let database = testing::database("rights").await;
    let url = plain_login(&database).await;
    let nothing = sqlx::migrate::Migrator::DEFAULT;
    let services = [(SVC, &nothing), (Schema::new("other"), &nothing)];

    let refused = db::migrate_all(&url, &services).await.unwrap_err();
    assert_eq!(refused.code(), "config.database_rights");
    let statements = db::lacks(&url, &services).await.unwrap();
    assert_eq!(statements.len(), 5, "two roles, two schemas and one grant: {statements:?}");
    assert!(refused.message().ends_with(&format!("{};", statements.join("; "))), "{refused}");

    let sql = statements.join(";");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(database.pool()).await.unwrap();
    db::migrate_all(&url, &services).await.unwrap();
    db::check(&url, &services).await.unwrap();
    assert_eq!(db::lacks(&url, &services).await.unwrap(), Vec::<String>::new());
}

#[tokio::test]
async fn where_an_administrator_has_migrated_a_plain_login_needs_the_grants_alone() {
    let database = testing::database("granted").await;
    let url = plain_login(&database).await;
    let nothing = sqlx::migrate::Migrator::DEFAULT;
    let services = [(SVC, &nothing), (Schema::new("other"), &nothing)];
    db::migrate_all(database.url(), &services).await.unwrap();

    let refused = db::check(&url, &services).await.unwrap_err();
    assert_eq!(refused.code(), "config.database_rights");
    let statements = db::lacks(&url, &services).await.unwrap();
    let [grant] = statements.as_slice() else { panic!("{statements:?}") };
    assert!(grant.starts_with("grant "), "{grant}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(grant.clone())).execute(database.pool()).await.unwrap();
    db::check(&url, &services).await.unwrap();
    db::migrate_all(&url, &services).await.unwrap();
}

#[tokio::test]
async fn a_login_or_a_database_that_is_not_there_is_told_as_what_it_is() {
    let database = testing::database("login").await;
    let mut url = url::Url::parse(&plain_login(&database).await).unwrap();
    url.set_path("/nowhere");
    assert_eq!(db::inspect(url.as_str()).await.unwrap_err().code(), "config.database_missing");
    assert!(db::url_fault("mysql://x").is_some() && db::url_fault(database.url()).is_none());
}

#[tokio::test]
async fn a_transaction_that_stands_still_is_ended_and_that_passes() {
    const SCHEMA: Schema = Schema::new("still");
    let database = testing::database("still").await;
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create role \"{}_still\"", name(database.url()))))
        .execute(database.pool())
        .await
        .expect("a role");
    let pool = db::connect(database.url(), SCHEMA, 1).await.expect("a pool");
    let idle_max: String =
        sqlx::query_scalar("show idle_in_transaction_session_timeout").fetch_one(&pool).await.expect("an answer");
    assert_eq!(idle_max, "10s");

    let mut frozen = pool.begin().await.expect("a transaction");
    let shorter = "select set_config('idle_in_transaction_session_timeout', '50ms', true), pg_backend_pid()";
    let (_, pid): (String, i32) = sqlx::query_as(shorter).fetch_one(&mut *frozen).await.expect("an answer");
    let is_there = "select exists (select from pg_stat_activity where pid = $1)";
    while sqlx::query_scalar(is_there).bind(pid).fetch_one(database.pool()).await.expect("an answer") {}
    let fail = Fail::from(sqlx::query("select").execute(&mut *frozen).await.expect_err("it is over"));
    assert_eq!(fail.kind(), Kind::Unavailable, "{fail:?}");
}

fn name(url: &str) -> &str {
    url.split('?').next().and_then(|front| front.rsplit('/').next()).unwrap_or_default()
}
