//! What a service's connections to Postgres are good for when a machine vanishes, at this end or at the other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "bus/line.rs"]
mod line;

use std::time::Duration;

use kit::{
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
