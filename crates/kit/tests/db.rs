//! What every connection of a service is set to.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use kit::{
    db::{self, Schema},
    testing,
};

#[tokio::test]
async fn a_session_ends_soon_after_the_machine_at_its_other_end() {
    let database = testing::database("vanished").await;
    let name: String = sqlx::query_scalar("select current_database()").fetch_one(database.pool()).await.unwrap();
    let role = format!("create role {name}_svc nologin; grant {name}_svc to current_user");
    sqlx::raw_sql(sqlx::AssertSqlSafe(role)).execute(database.pool()).await.unwrap();
    let pool = db::connect(database.url(), Schema::new("svc"), 1).await.unwrap();
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
