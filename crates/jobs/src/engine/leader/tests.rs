//! The row of the leader, with a real database: who may begin, beat and take, and who waits for whom.

use kit::testing::TestDatabase;

use super::*;
use crate::{MIGRATOR, SCHEMA};

async fn database() -> TestDatabase {
    kit::testing::database_with("jobs", |url| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await }).await
}

async fn seen(pool: &PgPool) -> Seen {
    let row = sqlx::query!("select epoch, beat from jobs.leader").fetch_one(pool).await.expect("the row");
    Seen { epoch: row.epoch, beat: row.beat }
}

#[tokio::test]
async fn who_has_lost_the_lead_can_neither_begin_nor_beat() {
    let database = database().await;
    let pool = database.pool();
    let old = Lead::seize(pool, Uuid::from_u128(1)).await.expect("the lead");
    old.begin(pool).await.expect("a transaction").commit().await.expect("it holds");
    let mut connection = pool.acquire().await.expect("a connection");
    let taken = Lead::take(&mut connection, Uuid::from_u128(2), seen(pool).await).await.expect("an answer");
    let new = taken.expect("the lead");
    assert_eq!(old.begin(pool).await.expect_err("it has lost").code(), NOT_LEADING);
    assert!(!old.beat(&mut connection).await.expect("an answer"));
    // Nor can it leave the lead for another.
    old.lay_down(pool).await.expect("an answer");
    assert!(new.beat(&mut connection).await.expect("an answer"));
    new.begin(pool).await.expect("a transaction").commit().await.expect("it holds");
}

#[tokio::test]
async fn a_beat_that_was_not_seen_keeps_the_lead() {
    let database = database().await;
    let pool = database.pool();
    let lead = Lead::seize(pool, Uuid::from_u128(1)).await.expect("the lead");
    let mut connection = pool.acquire().await.expect("a connection");
    let before = seen(pool).await;
    assert!(lead.beat(&mut connection).await.expect("an answer"));
    assert_eq!(Lead::take(&mut connection, Uuid::from_u128(2), before).await.expect("an answer"), None);
}

#[tokio::test]
async fn a_transaction_lets_beats_pass_and_nobody_take_the_lead_before_its_end() {
    let database = database().await;
    let pool = database.pool().clone();
    let lead = Lead::seize(&pool, Uuid::from_u128(1)).await.expect("the lead");
    let mut connection = pool.acquire().await.expect("a connection");
    let open = lead.begin(&pool).await.expect("a transaction");
    assert!(lead.beat(&mut connection).await.expect("an answer"));
    let from = seen(&pool).await;
    let taking = Lead::take(&mut connection, Uuid::from_u128(2), from);
    let ended = async {
        kit::testing::something_waits(&pool).await;
        assert_eq!(seen(&pool).await, from, "it is not taken yet");
        open.commit().await.expect("it was begun under the lead");
    };
    let (taken, ()) = tokio::join!(taking, ended);
    assert!(taken.expect("an answer").is_some());
}

#[tokio::test]
async fn a_transaction_that_stands_still_hinders_nobody_for_long() {
    let database = database().await;
    let pool = database.pool().clone();
    let lead = Lead::seize(&pool, Uuid::from_u128(1)).await.expect("the lead");
    let mut frozen = lead.begin(&pool).await.expect("a transaction");
    let mut connection = pool.acquire().await.expect("a connection");
    let from = seen(&pool).await;
    let taking = Lead::take(&mut connection, Uuid::from_u128(2), from);
    let taken = tokio::time::timeout(Duration::from_secs(20), taking).await.expect("it need not wait for long");
    assert!(taken.expect("an answer").is_some());
    let fail = Fail::from(sqlx::query("select").execute(&mut *frozen).await.expect_err("it is over"));
    assert_eq!(fail.kind(), kit::Kind::Unavailable);
}
