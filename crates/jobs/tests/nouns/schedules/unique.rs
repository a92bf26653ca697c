//! Schedules whose jobs are unique.

use proto::jobs::{CancelJobRequest, Unique};

use super::{
    firing::{MINUTE, each_minute, jobs, states, until},
    *,
};

#[tokio::test]
async fn an_occurrence_whose_unique_key_is_held_is_skipped_or_refused_as_its_job_asks() {
    let house = House::open().await;
    drop(hand(&house).await);
    let user = house.user("operator");
    let keyed = |on_conflict: &str, overlap: &str| {
        let unique = Unique { on_conflict: on_conflict.to_owned(), ..Unique::default() };
        let job = JobSpec { unique_key: Some("k".to_owned()), unique: Some(unique), ..spec("demo_echo") };
        ScheduleSpec { job: Some(job), overlap: overlap.to_owned(), ..each_minute() }
    };
    let held = house.submit(&user, keyed("return", "allow").job.expect("a job")).await.expect("it is taken in");
    let skips = create(&house, &user, keyed("return", "allow")).await.expect("made");
    let fails = create(&house, &user, keyed("refuse", "queue_one")).await.expect("made");
    house.clock.advance(MINUTE);
    let shown = until(&house, &user, &skips.id, |schedule| schedule.skipped > 0).await;
    assert_eq!((shown.skipped, shown.runs.len(), shown.failures), (1, 0, 0));
    let shown = until(&house, &user, &fails.id, |schedule| schedule.failures > 0).await;
    assert!(shown.last_error.contains("unique key"), "{}", shown.last_error);
    // By hand, the job that is there is the run; who asks to be refused is.
    let mut service = client(&house);
    let message = RunScheduleRequest { id: skips.id.clone() };
    assert_eq!(answer(service.run(user.call.request(message)).await).expect("it runs").job_id, held.id);
    let message = RunScheduleRequest { id: fails.id.clone() };
    assert_eq!(code(service.run(user.call.request(message)).await), "jobs.unique_key_held");
    assert_eq!(jobs(&house).await, 1);
    // A backfill that runs its occurrences side by side has one job for them all, when the key is free.
    let message = CancelJobRequest { id: held.id, reason: String::new() };
    answer(house.jobs().cancel(user.call.request(message)).await).expect("it waits");
    let until_now = house.clock.now();
    let (made, existing) = backfill(&house, &user, &skips.id, until_now - MINUTE * 5, until_now).await.expect("filled");
    assert_eq!(made, 1);
    assert!(existing >= 4, "{existing}");
}

#[tokio::test]
async fn an_occurrence_replaces_the_one_that_still_waits() {
    let house = House::open().await;
    drop(hand(&house).await);
    let user = house.user("operator");
    let unique = Unique { on_conflict: "replace".to_owned(), ..Unique::default() };
    let job = JobSpec { unique_key: Some("k".to_owned()), unique: Some(unique), ..spec("demo_echo") };
    let made = create(&house, &user, ScheduleSpec { job: Some(job), ..each_minute() }).await.expect("made");
    house.clock.advance(MINUTE);
    until(&house, &user, &made.id, |schedule| states(schedule) == ["queued"]).await;
    house.clock.advance(MINUTE);
    until(&house, &user, &made.id, |schedule| states(schedule) == ["queued", "cancelled"]).await;
}
