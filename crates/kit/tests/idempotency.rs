//! What becomes of an idempotency key's row when two want it at once.

use kit::{
    Clock,
    db::Schema,
    grpc::IdempotencyKey,
    idempotency::{self, Found, LIFETIME},
    testing,
};

const SVC: Schema = Schema::new("svc");

#[tokio::test]
async fn an_answer_that_is_given_anew_while_the_old_one_is_pruned_is_kept() {
    let database = testing::database("idempotency").await;
    let pool = database.pool();
    sqlx::raw_sql(
        "create schema svc;
         create table svc.idempotency_key (
           caller uuid not null, key text not null, digest bytea not null,
           code text, answer bytea not null, created_at timestamptz not null, primary key (caller, key)
         )",
    )
    .execute(pool)
    .await
    .unwrap();
    let clock = Clock::system();
    let (caller, now) = (clock.new_id(), clock.now());
    let key = IdempotencyKey { key: "k".to_owned(), digest: [1; 32] };
    let mut connection = pool.acquire().await.unwrap();
    idempotency::keep(&mut connection, SVC, caller, &key, Ok(b"old"), now - LIFETIME).await.unwrap();

    let mut anew = pool.begin().await.unwrap();
    assert!(matches!(idempotency::find(&mut anew, SVC, caller, &key, now).await.unwrap(), Found::Fresh));
    idempotency::keep(&mut anew, SVC, caller, &key, Ok(b"new"), now).await.unwrap();
    let prune = idempotency::prune(&mut connection, SVC, now, 10);
    let commit = async {
        // It has chosen the row for its age by then.
        testing::something_waits(pool).await;
        anew.commit().await.unwrap();
    };
    let (pruned, ()) = tokio::join!(prune, commit);

    assert_eq!(pruned.unwrap(), 0);
    let found = idempotency::find(&mut connection, SVC, caller, &key, now).await.unwrap();
    assert!(matches!(&found, Found::Answered(Ok(answer)) if answer == b"new"), "{found:?}");
    // A day later it may go.
    assert_eq!(idempotency::prune(&mut connection, SVC, now + LIFETIME, 10).await.unwrap(), 1);
}
