//! What schedules do by themselves, while the clock is moved on: each occurrence once, whoever looks and whatever fails.

use std::time::Duration;

use proto::{
    jobs::{CancelJobRequest, RetryJobRequest, ScheduleRun},
    worker::{Failed, Succeeded, outcome::End},
};

use super::*;

/// Nothing here takes long; this ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(60);
pub(super) const MINUTE: Duration = Duration::from_secs(60);

/// Waits until a schedule is as wanted.
pub(super) async fn until(house: &House, user: &User, id: &str, is: impl Fn(&Schedule) -> bool) -> Schedule {
    let mut last = None;
    let seen = tokio::time::timeout(PATIENCE, async {
        loop {
            let shown = get(house, user, id).await.expect("there");
            if is(&shown) {
                return shown;
            }
            last = Some(shown);
        }
    });
    seen.await.unwrap_or_else(|_| panic!("it never came to be: {last:?}"))
}

/// The states of a schedule's newest runs, the newest first.
pub(super) fn states(schedule: &Schedule) -> Vec<&str> {
    schedule.runs.iter().map(|run| run.state.as_str()).collect()
}

fn at(run: &ScheduleRun) -> DateTime<Utc> {
    from_timestamp(&run.occurrence_at.expect("it has one")).expect("a time")
}

async fn execute(house: &House, sql: &'static str) {
    sqlx::raw_sql(sql).execute(house.pool()).await.expect(sql);
}

pub(super) async fn jobs(house: &House) -> i64 {
    sqlx::query_scalar("select count(*) from jobs.any_job").fetch_one(house.pool()).await.expect("a count")
}

/// Each minute, every occurrence made up for and side by side, so that none is lost to a policy.
pub(super) fn each_minute() -> ScheduleSpec {
    let timing = cron("* * * * *", "UTC");
    ScheduleSpec { missed: "all".to_owned(), overlap: "allow".to_owned(), ..scheduled(timing) }
}

fn failed() -> End {
    End::Failed(Failed {
        kind: "provider".to_owned(),
        message: "It was not there.".to_owned(),
        retryable: false,
        retry_after_s: None,
    })
}

fn succeeded() -> End {
    End::Succeeded(Succeeded { result_json: "{}".to_owned(), ..Succeeded::default() })
}

#[tokio::test]
async fn two_replicas_that_look_at_once_run_each_occurrence_once() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let _other = house.replica().await;
    let operator = house.user("operator");
    let mut ids = Vec::new();
    for _ in 0..120 {
        ids.push(create(&house, &operator, each_minute()).await.expect("made").id);
    }
    house.clock.advance(MINUTE * 5);
    for id in &ids {
        let schedule = until(&house, &operator, id, |schedule| schedule.runs.len() >= 5).await;
        assert_eq!(states(&schedule), ["queued"; 5]);
        let gaps: Vec<i64> = schedule.runs.windows(2).map(|two| (at(&two[0]) - at(&two[1])).num_seconds()).collect();
        assert_eq!(gaps, [60; 4]);
    }
    assert_eq!(jobs(&house).await, 120 * 5);
}

#[tokio::test]
async fn a_job_runs_as_the_owner_at_its_time_under_an_id_that_tells_it() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let spec = ScheduleSpec { jitter_s: 50, ..each_minute() };
    let made = create(&house, &user, spec).await.expect("made");
    house.clock.advance(MINUTE);
    let schedule = until(&house, &user, &made.id, |schedule| !schedule.runs.is_empty()).await;
    let run = &schedule.runs[0];
    let (owner, run_at): (uuid::Uuid, DateTime<Utc>) =
        sqlx::query_as("select owner_id, run_at from jobs.any_job where id = $1")
            .bind(run.job_id.parse::<uuid::Uuid>().expect("an id"))
            .fetch_one(house.pool())
            .await
            .expect("a row");
    assert_eq!(owner, user.id);
    // Later by its jitter, and never earlier than it was looked at.
    let latest = (at(run) + chrono::TimeDelta::seconds(50)).max(house.clock.now());
    assert!((at(run)..=latest).contains(&run_at), "{run_at} of {}", at(run));
    let told = run.job_id.parse::<uuid::Uuid>().expect("an id").get_timestamp().expect("it tells a time").to_unix();
    assert_eq!(i64::try_from(told.0).expect("small"), at(run).timestamp());
}

#[tokio::test]
async fn what_was_missed_is_made_up_for_as_the_schedule_says() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let missing = |missed: &str, missed_max| {
        let timing = every(3600);
        ScheduleSpec { missed: missed.to_owned(), missed_max, overlap: "allow".to_owned(), ..scheduled(timing) }
    };
    let mut made = Vec::new();
    for spec in [missing("skip", None), missing("once", None), missing("all", None), missing("all", Some(2))] {
        made.push(create(&house, &user, spec).await.expect("made"));
    }
    house.clock.advance(Duration::from_secs(5 * 3600 + 1800));
    let mut told = Vec::new();
    for schedule in &made {
        let next = schedule.next_at;
        let fired = until(&house, &user, &schedule.id, |now| now.next_at != next).await;
        told.push((fired.runs.len(), fired.missed));
    }
    assert_eq!(told, [(0, 5), (1, 4), (5, 0), (2, 3)]);
}

#[tokio::test]
async fn a_run_at_work_is_waited_for_skipped_or_cancelled() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let overlapping = |overlap: &str| ScheduleSpec { overlap: overlap.to_owned(), ..each_minute() };
    let [skip, one, cancel] = ["skip", "queue_one", "cancel_running"].map(overlapping);
    let skip = create(&house, &user, skip).await.expect("made").id;
    let one = create(&house, &user, one).await.expect("made").id;
    let cancel = create(&house, &user, cancel).await.expect("made").id;
    house.clock.advance(MINUTE);
    for id in [&skip, &one, &cancel] {
        until(&house, &user, id, |schedule| states(schedule) == ["queued"]).await;
    }
    house.clock.advance(MINUTE);
    until(&house, &user, &skip, |schedule| schedule.skipped == 1 && states(schedule) == ["queued"]).await;
    let waiting = until(&house, &user, &one, |schedule| states(schedule) == ["waiting", "queued"]).await;
    until(&house, &user, &cancel, |schedule| states(schedule) == ["queued", "cancelled"]).await;
    house.clock.advance(MINUTE);
    until(&house, &user, &one, |schedule| schedule.skipped == 1 && states(schedule) == ["waiting", "queued"]).await;
    // Its turn comes when the run before it has ended.
    let message = CancelJobRequest { id: waiting.runs[1].job_id.clone(), reason: String::new() };
    answer(house.jobs().cancel(user.call.request(message)).await).expect("cancelled");
    let released = until(&house, &user, &one, |schedule| states(schedule) == ["queued", "cancelled"]).await;
    assert_eq!(released.runs[0].job_id, waiting.runs[0].job_id);
}

#[tokio::test]
async fn runs_that_fail_in_a_row_pause_their_schedule_and_one_that_is_retried_is_at_work_again() {
    let house = House::open().await;
    let first = hand(&house).await;
    let user = house.user("customer");
    let mut job = spec("demo_echo");
    job.max_attempts = Some(1);
    let asked = ScheduleSpec { pause_after_failures: Some(2), job: Some(job), ..scheduled(every(60)) };
    let made = create(&house, &user, asked).await.expect("made");
    drop(first);
    for (failures, end) in [(1, failed()), (0, succeeded()), (1, failed()), (2, failed())] {
        house.clock.advance(MINUTE);
        until(&house, &user, &made.id, |schedule| states(schedule).first() == Some(&"queued")).await;
        // A worker of its own for each minute: the clock's leap has ended the lease of the one before.
        let mut hand = hand(&house).await;
        let taken = hand.take().await;
        hand.end(&taken, end).await;
        until(&house, &user, &made.id, |schedule| schedule.failures == failures && is_settled(schedule)).await;
    }
    let paused = get(&house, &user, &made.id).await.expect("there");
    assert_eq!((paused.state.as_str(), paused.pause_reason.as_str()), ("paused", "2 runs failed in a row."));
    assert_eq!(paused.paused_by, "");
    house.clock.advance(MINUTE * 3);
    let resumed = resume(&house, &user, &made.id).await.expect("resumed");
    assert_eq!((resumed.failures, resumed.runs.len()), (0, 4), "what came due meanwhile is not made up for");
    // The last run is retried by hand, and the next occurrence finds it at work.
    let message = RetryJobRequest { id: resumed.runs[0].job_id.clone() };
    answer(house.jobs().retry(user.call.request(message)).await).expect("queued again");
    house.clock.advance(MINUTE);
    until(&house, &user, &made.id, |schedule| schedule.skipped == 1 && schedule.runs.len() == 4).await;
}

fn is_settled(schedule: &Schedule) -> bool {
    !states(schedule).contains(&"queued") && !states(schedule).contains(&"running")
}

#[tokio::test]
async fn a_job_that_the_task_takes_no_more_is_told_and_the_next_occurrence_is_tried() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let mut job = spec("demo_echo");
    job.args_json = r#"{"n":1}"#.to_owned();
    let made = create(&house, &user, ScheduleSpec { job: Some(job), ..each_minute() }).await.expect("made");
    let narrower = house.hand(vec![task("demo_echo", "default", &json!({}))]).await;
    // A schema that was read is used for a moment yet.
    let refused = minutes_until(&house, &user, &made.id, |schedule| !schedule.last_error.is_empty()).await;
    assert!(refused.last_error.contains("/job/args/n"), "{}", refused.last_error);
    assert_eq!((refused.state.as_str(), refused.failures), ("active", 1));
    drop(narrower);
    let _wider = hand(&house).await;
    let runs = refused.runs.len();
    minutes_until(&house, &user, &made.id, |schedule| schedule.last_error.is_empty() && schedule.runs.len() > runs)
        .await;
}

/// Moves the clock on by minutes, each of which is looked at, until a schedule is as wanted.
async fn minutes_until(house: &House, user: &User, id: &str, is: impl Fn(&Schedule) -> bool) -> Schedule {
    for _ in 0..100 {
        let next = get(house, user, id).await.expect("there").next_at;
        house.clock.advance(MINUTE);
        let schedule = until(house, user, id, |schedule| schedule.next_at != next).await;
        if is(&schedule) {
            return schedule;
        }
    }
    panic!("it never came to be")
}

#[tokio::test]
async fn one_that_cannot_be_read_or_written_keeps_no_other_waiting() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let operator = house.user("operator");
    let mut ids = Vec::new();
    for n in 0..3 {
        let mut job = spec("demo_echo");
        job.tags = vec![format!("{n}")];
        ids.push(create(&house, &operator, ScheduleSpec { job: Some(job), ..each_minute() }).await.expect("made").id);
    }
    sqlx::query("update jobs.schedule set spec = '\\xff' where id = $1")
        .bind(ids[0].parse::<uuid::Uuid>().expect("an id"))
        .execute(house.pool())
        .await
        .expect("spoilt");
    execute(
        &house,
        "create function jobs.refuse() returns trigger language plpgsql as $$ begin raise 'no'; end $$;
         create trigger refuse before insert on jobs.job for each row when (new.tags = '{1}') execute function jobs.refuse();",
    )
    .await;
    house.clock.advance(MINUTE);
    until(&house, &operator, &ids[2], |schedule| schedule.runs.len() == 1).await;
    let unwritten = until(&house, &operator, &ids[1], |schedule| !schedule.last_error.is_empty()).await;
    assert_eq!((unwritten.runs.len(), unwritten.state.as_str()), (0, "active"));
    let state: Option<String> = sqlx::query_scalar("select pause_reason from jobs.schedule where spec = '\\xff'")
        .fetch_one(house.pool())
        .await
        .expect("a row");
    assert_eq!(state.as_deref(), Some("It cannot be read."));
}

#[tokio::test]
async fn an_occurrence_and_the_move_to_the_next_are_durable_together() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let made = create(&house, &user, each_minute()).await.expect("made");
    // Whatever moves a schedule on is refused, as a crash before the end of the transaction would undo it.
    execute(
        &house,
        "create sequence jobs.tries;
         grant all on sequence jobs.tries to public;
         create function jobs.refuse() returns trigger language plpgsql as
           $$ begin perform nextval('jobs.tries'); raise 'no'; end $$;
         create trigger refuse before update on jobs.schedule for each row execute function jobs.refuse();",
    )
    .await;
    house.clock.advance(MINUTE);
    let tried = async {
        while !sqlx::query_scalar::<_, bool>("select last_value > 2 from jobs.tries")
            .fetch_one(house.pool())
            .await
            .expect("a value")
        {}
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("it is tried again");
    assert_eq!(jobs(&house).await, 0, "a job is there and its schedule has not moved on");
    execute(&house, "drop trigger refuse on jobs.schedule").await;
    until(&house, &user, &made.id, |schedule| schedule.runs.len() == 1).await;
    assert_eq!(jobs(&house).await, 1);
}

#[tokio::test]
async fn an_occurrence_that_ran_is_not_run_again_by_a_schedule_set_back_nor_by_a_backfill() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let made = create(&house, &user, each_minute()).await.expect("made");
    let first = from_timestamp(&made.next_at.expect("it comes")).expect("a time");
    house.clock.advance(MINUTE * 3);
    until(&house, &user, &made.id, |schedule| schedule.runs.len() == 3).await;
    // With the runs forgotten, too, the jobs are there.
    execute(&house, "delete from jobs.schedule_run").await;
    sqlx::query("update jobs.schedule set next_at = $1").bind(first).execute(house.pool()).await.expect("set back");
    let next = Some(first + MINUTE * 3);
    until(&house, &user, &made.id, |schedule| schedule.next_at.as_ref().and_then(from_timestamp) == next).await;
    assert_eq!(jobs(&house).await, 3);

    let (from, end) = (first - MINUTE * 5, first + MINUTE * 2);
    assert_eq!(backfill(&house, &user, &made.id, from, end).await.expect("it runs"), (5, 3));
    assert_eq!(backfill(&house, &user, &made.id, from, end).await.expect("it runs"), (0, 8));
    assert_eq!(jobs(&house).await, 8);
}

#[tokio::test]
async fn a_backfill_runs_one_after_another_and_is_bounded() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let made = create(&house, &user, scheduled(cron("* * * * *", "UTC"))).await.expect("made");
    let now = house.clock.now();
    let ago = |minutes: u64| now - Duration::from_secs(60 * minutes);
    pause(&house, &user, &made.id).await.expect("paused");
    let (begun, existing) = backfill(&house, &user, &made.id, ago(3), ago(1)).await.expect("it runs");
    assert!((2..=3).contains(&begun) && existing == 0);
    let started = until(&house, &user, &made.id, |schedule| states(schedule).last() == Some(&"queued")).await;
    assert_eq!(states(&started).iter().filter(|state| **state == "waiting").count(), begun - 1);
    let refusal = async |from, until| {
        let fail = backfill(&house, &user, &made.id, from, until).await.expect_err("refused");
        fail.violations().first().map(|fault| format!("{} {}", fault.pointer, fault.code)).unwrap_or_default()
    };
    assert_eq!(refusal(ago(2000), now).await, "/until max_items");
    assert_eq!(refusal(now, ago(1)).await, "/until minimum");
    assert_eq!(refusal(ago(1), now + MINUTE).await, "/until minimum");
    assert_eq!(refusal(ago(60 * 24 * 31), now).await, "/from minimum");
}
