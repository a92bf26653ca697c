//! What a job has waited for, in seconds by reason. Its own states say when it was not due, waited for a retry, for its
//! children, or stood in its queue; of the time in the queue, what held the queue, its task or its lane up meanwhile is told
//! as that, and the rest as waiting for its turn at a slot.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use kit::Fail;
use serde::Deserialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// States of one job that are looked at, the last ones: of one that was snoozed a thousand times the rest is not told.
const STATES_MAX: i64 = 1_000;
/// Hold-ups that are looked at, the last ones.
const HOLDUPS_MAX: i64 = 1_000;

/// As an event tells it.
#[derive(Debug, Deserialize)]
struct Told {
    state: String,
    #[serde(default)]
    attempt: u32,
}

/// A span of time.
#[derive(Debug, Clone, Copy)]
struct Span {
    from: DateTime<Utc>,
    to: DateTime<Utc>,
}

/// Where the job stands.
pub(super) struct Stand<'a> {
    pub(super) id: Uuid,
    pub(super) queue: &'a str,
    pub(super) task: &'a str,
    pub(super) lane: Option<&'a str>,
    /// None while it lives.
    pub(super) finished_at: Option<DateTime<Utc>>,
}

/// Seconds by reason, of which each is above 0.
///
/// # Errors
/// As the database.
pub(super) async fn waited(
    conn: &mut PgConnection,
    stand: &Stand<'_>,
    now: DateTime<Utc>,
) -> Result<BTreeMap<&'static str, f64>, Fail> {
    let rows = sqlx::query!(
        r#"select data, at as "at!"
           from (
             (
               select at_offset, data, at
               from jobs.event
               where stream_id = $1 and kind = 'state'
               order by at_offset desc
               limit $2
             )
             union all
             -- The start of an attempt that only the job's row tells; its end is where the job's is.
             select started_event, null, coalesce(attempt_started_at, since)
             from jobs.job
             where id = $1 and started_event is not null
             union all
             select started_event, null, attempt_started_at
             from jobs.job_history
             where id = $1 and started_event is not null
           ) as last
           order by at_offset"#,
        stand.id,
        STATES_MAX,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut waited: BTreeMap<&'static str, TimeDelta> = BTreeMap::new();
    let mut queued = Vec::new();
    for (n, row) in rows.iter().enumerate() {
        let Some(data) = &row.data else { continue };
        let told: Told = serde_json::from_str(data).map_err(Fail::internal)?;
        let to = rows.get(n + 1).map(|next| next.at).or(stand.finished_at).unwrap_or(now);
        let span = Span { from: row.at, to: to.max(row.at) };
        let reason = match told.state.as_str() {
            "waiting" => "waiting_for_jobs",
            "scheduled" if told.attempt == 0 => "not_due",
            "scheduled" => "retry",
            "suspended" => "waiting_for_children",
            "queued" => {
                queued.push(span);
                continue;
            }
            _ => continue,
        };
        *waited.entry(reason).or_default() += span.to - span.from;
    }
    if let (Some(first), Some(last)) = (queued.first(), queued.last()) {
        let holdups = sqlx::query!(
            r#"select reason, from_at, coalesce(to_at, $6) as "to_at!"
               from jobs.holdup
               where queue = $1 and (task = '' or task = $2) and (lane = '' or lane = $3)
                 and from_at < $5 and (to_at is null or to_at > $4)
               order by from_at desc
               limit $7"#,
            stand.queue,
            stand.task,
            stand.lane.unwrap_or_default(),
            first.from,
            last.to,
            now,
            HOLDUPS_MAX,
        )
        .fetch_all(conn)
        .await?;
        let holdups: Vec<(usize, Span)> = holdups
            .into_iter()
            .filter_map(|row| Some((order(&row.reason)?, Span { from: row.from_at, to: row.to_at })))
            .collect();
        for span in queued {
            share_out(span, &holdups, &mut waited);
        }
    }
    let seconds = waited.into_iter().map(|(reason, time)| (reason, time.as_seconds_f64()));
    Ok(seconds.filter(|(_, seconds)| *seconds > 0.0).collect())
}

/// Reasons to stand in a queue. Of several at one time the first is told: it would hold without the others.
const REASONS: [&str; 7] =
    ["queue_paused", "no_worker", "queue_limit", "task_limit", "key_limit", "rate_limit", "key_rate_limit"];
const TURN: &str = "turn";

fn order(reason: &str) -> Option<usize> {
    REASONS.iter().position(|known| *known == reason)
}

/// Shares a span in the queue out among what held it up.
fn share_out(span: Span, holdups: &[(usize, Span)], waited: &mut BTreeMap<&'static str, TimeDelta>) {
    let within: Vec<(usize, Span)> = holdups
        .iter()
        .map(|(reason, held)| (*reason, Span { from: held.from.max(span.from), to: held.to.min(span.to) }))
        .filter(|(_, held)| held.from < held.to)
        .collect();
    let mut edges: Vec<DateTime<Utc>> = within.iter().flat_map(|(_, held)| [held.from, held.to]).collect();
    edges.extend([span.from, span.to]);
    edges.sort_unstable();
    edges.dedup();
    for pair in edges.windows(2) {
        let reason =
            within.iter().filter(|(_, held)| held.from <= pair[0] && held.to >= pair[1]).map(|(n, _)| *n).min();
        let reason = reason.map_or(TURN, |n| REASONS[n]);
        *waited.entry(reason).or_default() += pair[1] - pair[0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: i64, to: i64) -> Span {
        let at = |second| DateTime::from_timestamp(1_790_000_000 + second, 0).expect("a time");
        Span { from: at(from), to: at(to) }
    }

    #[test]
    fn a_time_is_told_once_and_what_nothing_held_up_is_its_turn() {
        let holdups = [(2, span(0, 30)), (0, span(20, 40)), (1, span(90, 95)), (4, span(35, 50))];
        let mut waited = BTreeMap::new();
        share_out(span(10, 60), &holdups, &mut waited);
        let told: Vec<_> = waited.into_iter().map(|(reason, time)| (reason, time.num_seconds())).collect();
        assert_eq!(told, [("key_limit", 10), ("queue_limit", 10), ("queue_paused", 20), ("turn", 10)]);
    }
}
