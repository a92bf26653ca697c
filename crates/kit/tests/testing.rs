//! The promises that tests rely on when they ask for a database.

#![allow(clippy::unwrap_used, reason = "what a test prepares works, or the test fails")]

use kit::testing::{TestDatabase, database, database_with};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};

#[tokio::test]
async fn each_database_is_empty_whatever_others_hold() {
    let first = database("first").await;
    first.pool().execute("create table t (id int)").await.unwrap();

    let second = database("second").await;

    assert!(second.pool().execute("select from t").await.is_err());
    assert_ne!(first.url(), second.url());
}

#[tokio::test]
async fn a_copy_has_what_was_migrated_under_a_role_of_its_own() {
    let first = copy().await;
    let second = copy().await;

    for database in [&first, &second] {
        let own_role: bool = sqlx::query_scalar(
            "select tableowner = current_database() || '_svc' from pg_tables where schemaname = 'svc' and tablename = 't'",
        )
        .fetch_one(database.pool())
        .await
        .unwrap();
        assert!(own_role);
    }
    first.pool().execute("insert into svc.t values (1)").await.unwrap();
    let rows: i64 = sqlx::query_scalar("select count(*) from svc.t").fetch_one(second.pool()).await.unwrap();
    assert_eq!(rows, 0);
}

async fn copy() -> TestDatabase {
    database_with("svc", async |url: String| {
        let mut connection = PgConnection::connect(&url).await?;
        connection
            .execute(
                "do $$ begin
                   execute format('create role %I nologin', current_database() || '_svc');
                   execute format('create schema svc authorization %I', current_database() || '_svc');
                   execute format('set role %I', current_database() || '_svc');
                 end $$;
                 create table svc.t (id int);",
            )
            .await?;
        // Left open on purpose: a migration need not tidy up for the copy to be made.
        std::mem::forget(connection);
        Ok::<(), sqlx::Error>(())
    })
    .await
}
