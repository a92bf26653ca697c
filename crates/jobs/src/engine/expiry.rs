//! The clocks that no worker counts: a stay in the queue that is over, and a deadline. What waits ends `expired` at once;
//! what runs or has children at work is asked to stop, as a cancel does, and is `expired` when it has.

use std::collections::BTreeMap;

use kit::Fail;
use uuid::Uuid;

use super::{
    Ground, cancel,
    events::Telling,
    leader::Lead,
    states::State,
    steps::{self, Row, Step},
};

/// Jobs that one transaction takes.
const ROWS_MAX: i64 = 500;

/// Ends what is over. Idempotent; bounded bites until nothing is left.
pub(super) async fn run(ground: &Ground, lead: Lead) -> Result<(), Fail> {
    while queue_times(ground, lead).await? {}
    while deadlines(ground, lead).await? {}
    Ok(())
}

/// Jobs whose stay in the queue was too long; whether there may be more.
async fn queue_times(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let over = sqlx::query_scalar!(
        "select id from jobs.job
         where state = 'queued' and queue_until <= $1
         order by queue_until
         limit $2",
        now,
        ROWS_MAX,
    )
    .fetch_all(&ground.pool)
    .await?;
    if over.is_empty() {
        return Ok(false);
    }
    let mut transaction = lead.begin(&ground.pool).await?;
    let rows = steps::lock(&mut transaction, &over).await?;
    // One that was claimed, or put back, before its row was locked has another stay before it.
    let steps = rows
        .into_iter()
        .filter(|row| row.state == State::Queued.as_str() && row.queue_until.is_some_and(|until| until <= now))
        .map(|row| Step::expired(row, "It waited in its queue for longer than its `queue_timeout_s`."))
        .collect();
    let aftermath = steps::carry_out(ground, &mut transaction, steps, BTreeMap::new(), Telling::default(), now).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(is_page_full(&over))
}

/// Jobs whose deadline is over; whether there may be more.
async fn deadlines(ground: &Ground, lead: Lead) -> Result<bool, Fail> {
    let now = ground.clock.now();
    let over = sqlx::query_scalar!(
        "select id from jobs.job
         where deadline_at <= $1 and state <> 'cancelling'
         order by deadline_at
         limit $2",
        now,
        ROWS_MAX,
    )
    .fetch_all(&ground.pool)
    .await?;
    if over.is_empty() {
        return Ok(false);
    }
    let mut transaction = lead.begin(&ground.pool).await?;
    let rows = steps::lock(&mut transaction, &over).await?;
    let rows: Vec<Row> = rows
        .into_iter()
        .filter(|row| {
            row.state != State::Cancelling.as_str() && row.deadline_at.is_some_and(|deadline| deadline <= now)
        })
        .map(|row| Row { is_expiring: true, cancel_reason: Some("Its deadline is over.".to_owned()), ..row })
        .collect();
    let aftermath = cancel::stop(ground, &mut transaction, rows, now).await?;
    transaction.commit().await?;
    ground.after(&aftermath);
    Ok(is_page_full(&over))
}

fn is_page_full(page: &[Uuid]) -> bool {
    i64::try_from(page.len()).is_ok_and(|rows| rows == ROWS_MAX)
}
