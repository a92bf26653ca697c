//! Schedules: who makes, sees, changes and runs them, and what is refused; in `firing`, what they do by themselves.

mod firing;
mod unique;

use std::time::Duration;

use chrono::{DateTime, Utc};
use kit::{
    Fail,
    clock::{from_timestamp, to_timestamp},
    grpc::{Call, IdempotencyKey, Peer},
};
use prost::Message as _;
use proto::{
    events::ActRecorded,
    jobs::{
        BackfillScheduleRequest, CreateScheduleRequest, GetScheduleRequest, JobSpec, ListSchedulesRequest,
        PauseScheduleRequest, PreviewScheduleRequest, RemoveScheduleRequest, ResumeScheduleRequest, RunScheduleRequest,
        Schedule, ScheduleSpec, ScheduleTiming, UpdateScheduleRequest, schedules_client::SchedulesClient,
    },
};
use serde_json::json;

use crate::support::{Hand, House, User, answer, code, spec, task};

const NOBODYS: &str = "00000000-0000-7000-8000-000000000000";

fn client(house: &House) -> SchedulesClient<Peer> {
    SchedulesClient::new(house.peer.clone())
}

/// A worker that offers what the schedules here run.
async fn hand(house: &House) -> Hand {
    house.hand(vec![task("demo_echo", "default", &json!({ "n": { "type": "integer" } }))]).await
}

fn cron(text: &str, time_zone: &str) -> ScheduleTiming {
    ScheduleTiming { cron: text.to_owned(), time_zone: time_zone.to_owned(), ..ScheduleTiming::default() }
}

fn every(seconds: u32) -> ScheduleTiming {
    ScheduleTiming { every_s: Some(seconds), ..ScheduleTiming::default() }
}

fn scheduled(timing: ScheduleTiming) -> ScheduleSpec {
    ScheduleSpec { timing: Some(timing), job: Some(spec("demo_echo")), ..ScheduleSpec::default() }
}

async fn create(house: &House, user: &User, spec: ScheduleSpec) -> Result<Schedule, Fail> {
    answer(client(house).create(user.call.request(CreateScheduleRequest { spec: Some(spec) })).await)
}

async fn get(house: &House, user: &User, id: &str) -> Result<Schedule, Fail> {
    answer(client(house).get(user.call.request(GetScheduleRequest { id: id.to_owned() })).await)
}

async fn update(house: &House, user: &User, id: &str, spec: ScheduleSpec) -> Result<Schedule, Fail> {
    let message = UpdateScheduleRequest { id: id.to_owned(), spec: Some(spec) };
    answer(client(house).update(user.call.request(message)).await)
}

async fn pause(house: &House, user: &User, id: &str) -> Result<Schedule, Fail> {
    let message = PauseScheduleRequest { id: id.to_owned(), reason: "the summer".to_owned() };
    answer(client(house).pause(user.call.request(message)).await)
}

async fn resume(house: &House, user: &User, id: &str) -> Result<Schedule, Fail> {
    answer(client(house).resume(user.call.request(ResumeScheduleRequest { id: id.to_owned() })).await)
}

async fn backfill(
    house: &House,
    user: &User,
    id: &str,
    from: DateTime<Utc>,
    until: DateTime<Utc>,
) -> Result<(usize, u32), Fail> {
    let (from, until) = (Some(to_timestamp(from)), Some(to_timestamp(until)));
    let message = BackfillScheduleRequest { id: id.to_owned(), from, until };
    let told = answer(client(house).backfill(user.call.request(message)).await)?;
    Ok((told.job_ids.len(), told.existing))
}

/// Does everything that leaves an entry in the audit log, with a schedule of this name and job.
pub(crate) async fn every_act(house: &House, user: &User, name: &str, job: JobSpec) {
    let asked = |timing| ScheduleSpec { name: name.to_owned(), job: Some(job.clone()), ..scheduled(timing) };
    let id = create(house, user, asked(cron("* * * * *", "UTC"))).await.expect("made").id;
    let now = house.clock.now();
    backfill(house, user, &id, now - Duration::from_secs(300), now).await.expect("it runs");
    update(house, user, &id, asked(every(3600))).await.expect("changed");
    pause(house, user, &id).await.expect("paused");
    resume(house, user, &id).await.expect("resumed");
    let message = RunScheduleRequest { id: id.clone() };
    answer(client(house).run(user.call.request(message)).await).expect("it runs");
    answer(client(house).remove(user.call.request(RemoveScheduleRequest { id })).await).expect("removed");
}

fn faults(came: Result<Schedule, Fail>) -> (String, Vec<String>) {
    let fail = came.expect_err("refused");
    let told = fail.violations().iter().map(|fault| format!("{} {}", fault.pointer, fault.code)).collect();
    (fail.code().to_owned(), told)
}

#[tokio::test]
async fn a_schedule_is_made_shown_changed_paused_and_removed() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let asked = ScheduleSpec { name: "at noon".to_owned(), ..scheduled(cron("0 12 * * *", "Europe/Berlin")) };
    let made = create(&house, &user, asked).await.expect("made");
    assert_eq!((made.state.as_str(), made.owner_id.clone()), ("active", user.id.to_string()));
    let next = from_timestamp(&made.next_at.expect("it comes")).expect("a time");
    assert!(next > house.clock.now() && next < house.clock.now() + Duration::from_secs(25 * 3600));
    assert_eq!(made.spec.as_ref().map(|spec| spec.overlap.as_str()), Some("skip"));
    assert_eq!(get(&house, &user, &made.id).await.expect("there"), made);

    // Another spec with the same timing leaves when it comes.
    let mut spec = made.spec.clone().expect("a spec");
    spec.name = "at noon, quietly".to_owned();
    let changed = update(&house, &user, &made.id, spec.clone()).await.expect("changed");
    assert_eq!((changed.next_at, &changed.spec), (made.next_at, &Some(spec)));
    let moved = update(&house, &user, &made.id, scheduled(every(60))).await.expect("changed");
    let after = from_timestamp(&moved.next_at.expect("it comes")).expect("a time") - house.clock.now();
    assert!(after.num_seconds() <= 60, "{after}");
    house.clock.advance(Duration::from_millis(10_700));
    let kept = update(&house, &user, &made.id, scheduled(every(60))).await.expect("the same");
    assert_eq!(kept.spec, moved.spec, "an anchor that is not named is kept");

    let paused = pause(&house, &user, &made.id).await.expect("paused");
    assert_eq!((paused.state.as_str(), paused.pause_reason.as_str()), ("paused", "the summer"));
    assert_eq!((paused.paused_by.clone(), paused.next_at), (user.id.to_string(), None));
    house.clock.advance(Duration::from_secs(5));
    assert_eq!(pause(&house, &user, &made.id).await.expect("paused").paused_at, paused.paused_at);
    assert_eq!(resume(&house, &user, &made.id).await.expect("resumed").state, "active");
    let remove = || user.call.request(RemoveScheduleRequest { id: made.id.clone() });
    answer(client(&house).remove(remove()).await).expect("removed");
    assert_eq!(code(client(&house).remove(remove()).await), "schedules.not_found");
    let done = [
        "schedule.create",
        "schedule.update",
        "schedule.update",
        "schedule.pause",
        "schedule.resume",
        "schedule.remove",
    ];
    assert_eq!(acts(&house).await, done.map(|act| format!("{act} done")));
}

/// What was written down of acts, refusals among them.
async fn acts(house: &House) -> Vec<String> {
    let rows: Vec<Vec<u8>> =
        sqlx::query_scalar("select data from jobs.outbox where type = 'jobs.act.recorded' order by seq")
            .fetch_all(house.pool())
            .await
            .expect("rows");
    let acts = rows.iter().map(|data| ActRecorded::decode(data.as_slice()).expect("an entry"));
    acts.map(|act| format!("{} {}", act.action, act.outcome)).collect()
}

#[tokio::test]
async fn lists_are_paged_and_an_operator_sees_everybodys() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let (one, two, operator) = (house.user("customer"), house.user("customer"), house.user("operator"));
    let mut made = Vec::new();
    for user in [&one, &two, &one, &one] {
        made.push(create(&house, user, scheduled(every(3600))).await.expect("made").id);
    }
    made.reverse();
    let page = async |user: &User, limit: u32, cursor: &str| {
        let message = ListSchedulesRequest { limit, cursor: cursor.to_owned() };
        let page = answer(client(&house).list(user.call.request(message)).await).expect("a page");
        (page.items.into_iter().map(|schedule| schedule.id).collect::<Vec<_>>(), page.next_cursor)
    };
    let (first, cursor) = page(&one, 2, "").await;
    let (second, end) = page(&one, 2, &cursor).await;
    assert_eq!((first, second, end.as_str()), (made[..2].to_vec(), vec![made[3].clone()], ""));
    assert_eq!(page(&operator, 0, "").await.0, made);
}

#[tokio::test]
async fn what_can_never_come_or_may_not_be_run_is_refused_where_it_stands() {
    let house = House::open().await;
    let _hand = house.hand(["demo_echo", "cleanup"].map(|name| task(name, "default", &json!({}))).to_vec()).await;
    let (user, operator) = (house.user("customer"), house.user("operator"));
    let create = |spec| self::create(&house, &user, spec);
    let impossible = create(scheduled(cron("0 0 30 2 *", "UTC"))).await;
    let message = impossible.as_ref().expect_err("refused").violations()[0].message.clone();
    assert_eq!(message, "is not a cron expression: it names a day that no such month has");
    assert_eq!(faults(impossible), ("schedules.invalid".to_owned(), vec!["/cron enum".to_owned()]));
    let past = ScheduleTiming { at: Some(to_timestamp(house.clock.now())), ..ScheduleTiming::default() };
    assert_eq!(faults(create(scheduled(past)).await).1, ["/at minimum"]);
    assert_eq!(faults(create(ScheduleSpec::default()).await).1, [" enum", "/job required"]);
    let with = |job| ScheduleSpec { job: Some(job), ..scheduled(every(60)) };
    assert_eq!(
        faults(create(with(spec("demo_nothing"))).await),
        ("jobs.invalid".to_owned(), vec!["/job/task jobs.unknown_task".to_owned()])
    );
    let mut wrong = spec("demo_echo");
    wrong.args_json = r#"{"loud":true}"#.to_owned();
    assert_eq!(faults(create(with(wrong)).await).1, ["/job/args/loud additionalProperties"]);
    assert_eq!(
        faults(create(with(spec("cleanup"))).await),
        ("jobs.forbidden".to_owned(), vec!["/job/task forbidden".to_owned()])
    );
    // Nor may it become so later.
    let made = create(scheduled(every(60))).await.expect("made");
    assert_eq!(faults(update(&house, &user, &made.id, with(spec("cleanup"))).await).0, "jobs.forbidden");

    for _ in 1..10 {
        create(scheduled(every(60))).await.expect("made");
    }
    assert_eq!(faults(create(scheduled(every(60))).await).0, "schedules.too_many");
    for _ in 0..11 {
        self::create(&house, &operator, with(spec("cleanup"))).await.expect("made");
    }
}

#[tokio::test]
async fn strangers_find_nothing_and_nobody_is_let_in() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let (owner, stranger, operator) = (house.user("customer"), house.user("customer"), house.user("operator"));
    let made = create(&house, &owner, scheduled(every(60))).await.expect("made");
    let codes = async |call: &Call, id: &str| {
        let (id, mut client) = (id.to_owned(), client(&house));
        let (id, spec) = (|| id.clone(), Some(scheduled(every(60))));
        let now = Some(to_timestamp(house.clock.now()));
        [
            code(client.get(call.request(GetScheduleRequest { id: id() })).await),
            code(client.update(call.request(UpdateScheduleRequest { id: id(), spec })).await),
            code(client.pause(call.request(PauseScheduleRequest { id: id(), reason: String::new() })).await),
            code(client.resume(call.request(ResumeScheduleRequest { id: id() })).await),
            code(client.run(call.request(RunScheduleRequest { id: id() })).await),
            code(client.backfill(call.request(BackfillScheduleRequest { id: id(), from: now, until: now })).await),
            code(client.remove(call.request(RemoveScheduleRequest { id: id() })).await),
        ]
    };
    for id in [made.id.as_str(), NOBODYS, "no id"] {
        assert_eq!(codes(&stranger.call, id).await, ["schedules.not_found"; 7], "{id}");
    }
    let refused =
        ["update", "pause", "resume", "run", "backfill", "remove"].map(|act| format!("schedule.{act} refused"));
    assert_eq!(acts(&house).await[1..], refused);
    let nobody = Call::anonymous("request-1");
    assert_eq!(codes(&nobody, &made.id).await, ["auth.required"; 7]);
    let mut client = client(&house);
    let open = [
        code(client.create(nobody.request(CreateScheduleRequest::default())).await),
        code(client.list(nobody.request(ListSchedulesRequest::default())).await),
        code(client.preview(nobody.request(PreviewScheduleRequest::default())).await),
    ];
    assert_eq!(open, ["auth.required"; 3]);
    assert_eq!(codes(&operator.call, &made.id).await, ["ok"; 7]);
}

#[tokio::test]
async fn a_request_that_is_repeated_under_its_key_acts_once() {
    let house = House::open().await;
    let _hand = hand(&house).await;
    let user = house.user("customer");
    let keyed = |key: &str| {
        let key = IdempotencyKey { key: key.to_owned(), digest: [7; 32] };
        User { id: user.id, call: user.call.clone().with_idempotency(Some(key)) }
    };
    let first = create(&house, &keyed("a"), scheduled(every(3600))).await.expect("made");
    let again = create(&house, &keyed("a"), scheduled(every(3600))).await.expect("made before");
    assert_eq!((first.replayed, again.replayed, &first.id), (false, true, &again.id));
    let run = async |user: &User| {
        let message = RunScheduleRequest { id: first.id.clone() };
        answer(client(&house).run(user.call.request(message)).await).expect("it runs")
    };
    let (one, two, other) = (run(&keyed("b")).await, run(&keyed("b")).await, run(&user).await);
    assert_eq!((one.replayed, two.replayed, &one.job_id), (false, true, &two.job_id));
    assert_ne!(one.job_id, other.job_id);
    let shown = get(&house, &user, &first.id).await.expect("there");
    let kinds: Vec<(&str, &str)> = shown.runs.iter().map(|run| (run.kind.as_str(), run.state.as_str())).collect();
    assert_eq!(kinds, [("run", "queued"); 2]);
}

#[tokio::test]
async fn a_preview_marks_the_odd_hours() {
    let house = House::open().await;
    let user = house.user("customer");
    let preview = async |timing: ScheduleTiming, count: u32, after: &str| {
        let after = Some(to_timestamp(after.parse().expect("a time")));
        let message = PreviewScheduleRequest { timing: Some(timing), count, after };
        let told = answer(client(&house).preview(user.call.request(message)).await)?;
        assert!(told.time_zone_data.starts_with("20"), "{}", told.time_zone_data);
        Ok::<_, Fail>(told.items.into_iter().map(|at| format!("{} {}", at.local, at.note)).collect::<Vec<_>>())
    };
    let spring = preview(cron("30 2 * * *", "Europe/Berlin"), 3, "2026-03-28T00:00:00Z").await.expect("a preview");
    assert_eq!(
        spring,
        ["2026-03-28T02:30:00+01:00 ", "2026-03-29T03:00:00+02:00 clock goes forward", "2026-03-30T02:30:00+02:00 "]
    );
    let autumn = preview(cron("@hourly", "Antarctica/Troll"), 5, "2026-10-24T23:00:00Z").await.expect("a preview");
    let back = ["02:00:00+02:00", "01:00:00+00:00", "02:00:00+00:00"];
    assert_eq!(autumn[..3], back.map(|time| format!("2026-10-25T{time} clock goes back")));
    assert_eq!(autumn[3], "2026-10-25T03:00:00+00:00 ");
    assert_eq!(preview(every(60), 0, "2026-01-01T00:00:00Z").await.expect("a preview").len(), 10);
    assert_eq!(preview(every(60), 100, "2026-01-01T00:00:00Z").await.expect("a preview").len(), 100);
    let many = preview(every(60), 101, "2026-01-01T00:00:00Z").await.expect_err("too many");
    assert_eq!(many.violations()[0].pointer, "/count");
}
