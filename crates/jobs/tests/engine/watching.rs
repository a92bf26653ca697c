//! Live streams: everything after an offset, once, in order, to its end.

use std::time::{Duration, Instant};

use proto::{
    jobs::{ListAttemptsRequest, WatchRequest},
    worker::{Assignment, LogEntry, ProgressUpdate, Report, from_worker},
};

use crate::house::{House, User, spec};

fn line(assigned: &Assignment, message: String) -> from_worker::Message {
    let entry = LogEntry { attempt: assigned.attempt.clone(), level: "info".to_owned(), message, at: None };
    from_worker::Message::Report(Report { logs: vec![entry], ..Report::default() })
}

fn progress(assigned: &Assignment, percent: f64) -> from_worker::Message {
    let (stage, message) = ("mesh".to_owned(), String::new());
    let update = ProgressUpdate { attempt: assigned.attempt.clone(), percent, stage, message };
    from_worker::Message::Report(Report { progress: vec![update], ..Report::default() })
}

#[tokio::test]
async fn a_stream_resumes_after_any_offset_and_ends_with_the_job() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    for percent in [10.0, 20.0, 30.0] {
        let update = ProgressUpdate {
            attempt: assigned.attempt.clone(),
            percent,
            stage: format!("at {percent}"),
            message: String::new(),
        };
        worker.send(from_worker::Message::Report(Report { progress: vec![update], ..Report::default() })).await;
    }
    let entry =
        LogEntry { attempt: assigned.attempt.clone(), level: "info".into(), message: "a line".into(), at: None };
    worker.send(from_worker::Message::Report(Report { logs: vec![entry], ..Report::default() })).await;
    worker.succeed(&assigned, "{}").await;

    let all = user.events(&id, 0).await;
    assert_eq!(all.len(), 8);
    for offset in 0..=7 {
        let rest = user.events(&id, offset).await;
        assert_eq!(rest, all[usize::try_from(offset).unwrap()..], "after {offset}");
    }
    let (offset, _, log) = &all[5];
    assert_eq!((log["message"].as_str(), log["offset"].as_u64()), (Some("a line"), Some(*offset)));
}

#[tokio::test]
async fn an_offset_from_nowhere_is_answered_with_a_reset() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.succeed(&assigned, "{}").await;
    let events = user.events(&id, 4_000).await;
    assert_eq!(events.iter().map(|(_, event, _)| event.as_str()).collect::<Vec<_>>(), ["reset", "end"]);
    assert_eq!(events[0].2["snapshot"]["state"], "succeeded");
}

#[tokio::test]
async fn a_watcher_sees_an_event_without_asking_again() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let asked = WatchRequest { id: id.clone(), after_offset: 2 };
    let mut stream = user.jobs().watch(user.call.request(asked)).await.unwrap().into_inner();
    worker.succeed(&assigned, "{}").await;
    let event = stream.message().await.unwrap().unwrap();
    assert_eq!((event.offset, event.event.as_str()), (3, "state"));
    assert_eq!(stream.message().await.unwrap().unwrap().event, "end");
    assert!(stream.message().await.unwrap().is_none());
}

/// As a foreign worker may that gathers nothing: every word is a message of its own.
#[tokio::test]
async fn a_task_that_speaks_a_thousand_times_a_second_costs_a_few_writes_and_loses_no_line() {
    const TIMES: u32 = 1_000;
    let house = House::new().await;
    let pool = house.database.pool();
    let count = "create table public.writes (what text, rows bigint);
                 create function public.count_write() returns trigger language plpgsql security definer as $$
                   begin
                     insert into public.writes select tg_argv[0], count(*) from written;
                     return null;
                   end $$;
                 create trigger count_write after update on jobs.job referencing new table as written
                   for each statement execute function public.count_write('job');
                 create trigger count_write after insert on jobs.event referencing new table as written
                   for each statement execute function public.count_write('event')";
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    sqlx::raw_sql(count).execute(pool).await.unwrap();

    let began = Instant::now();
    for time in 1..=TIMES {
        worker.send(progress(&assigned, f64::from(time) / 10.0)).await;
        worker.send(line(&assigned, format!("line {time}"))).await;
        if time % 10 == 0 {
            // An answer now and then, so that it speaks over some time.
            worker.heartbeat(vec![assigned.attempt.clone().unwrap()], time.into(), 1).await;
        }
    }
    assert!(worker.succeed(&assigned, "{}").await);
    // One write each quarter of a second, the first at once, the last before the outcome, whose own is not counted.
    let took = began.elapsed();
    let writes_max = 2 + i64::try_from(took.as_millis() / 250).unwrap();
    let writes: Vec<(String, i64, i64)> =
        sqlx::query_as("select what, count(*), sum(rows)::bigint from public.writes group by what order by what")
            .fetch_all(pool)
            .await
            .unwrap();
    println!("{TIMES} updates of progress and {TIMES} lines in {took:?}: {writes:?} (what, statements, rows)");
    let [(_, event_statements, event_rows), (_, job_statements, _)] = writes.as_slice() else { panic!("{writes:?}") };
    assert!(*job_statements <= writes_max, "{job_statements} in {took:?}");
    assert!(*event_statements <= writes_max + 1, "{event_statements} in {took:?}");
    assert!(*event_rows <= i64::from(TIMES) + writes_max + 1, "{event_rows} in {took:?}");

    let all = user.events(&id, 0).await;
    let offsets: Vec<u64> = all.iter().map(|(offset, ..)| *offset).collect();
    let newest = *offsets.last().unwrap();
    assert_eq!(offsets[..offsets.len() - 1], (1..=newest).collect::<Vec<_>>());
    let lines = all.iter().filter(|(_, event, _)| event == "log");
    let lines: Vec<&str> = lines.map(|(.., data)| data["message"].as_str().unwrap()).collect();
    assert_eq!(lines, (1..=TIMES).map(|time| format!("line {time}")).collect::<Vec<_>>());
    let last = all.iter().rfind(|(_, event, _)| event == "progress").unwrap();
    assert_eq!(last.2["percent"], 100.0);
    assert_eq!(user.job(&id).await.progress.unwrap().percent, 100.0);
    for offset in [newest / 3, newest - 1] {
        assert_eq!(user.events(&id, offset).await, all[usize::try_from(offset).unwrap()..], "after {offset}");
    }
}

#[tokio::test]
async fn what_an_attempt_says_after_a_silence_is_seen_while_it_runs() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let asked = WatchRequest { id: id.clone(), after_offset: 2 };
    let mut stream = user.jobs().watch(user.call.request(asked)).await.unwrap().into_inner();
    for percent in [10.0, 20.0] {
        worker.send(progress(&assigned, percent)).await;
        let event = tokio::time::timeout(Duration::from_secs(20), stream.message()).await.unwrap().unwrap().unwrap();
        assert_eq!(event.event, "progress");
        assert!(event.data_json.contains(&percent.to_string()), "{}", event.data_json);
    }
}

#[tokio::test]
async fn who_resumes_before_what_is_kept_is_told_where_the_stream_goes_on() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    worker.send(line(&assigned, "a line".to_owned())).await;
    worker.succeed(&assigned, "{}").await;
    let names = |events: Vec<(u64, String, serde_json::Value)>| -> Vec<(u64, String)> {
        events.into_iter().map(|(offset, event, _)| (offset, event)).collect()
    };
    let told = |events: &[(u64, &str)]| events.iter().map(|(at, event)| (*at, (*event).to_owned())).collect::<Vec<_>>();
    let pool = house.database.pool();
    sqlx::query("delete from jobs.event where at_offset <= 2").execute(pool).await.unwrap();
    let kept = [(2, "state"), (3, "log"), (4, "state"), (4, "end")];
    assert_eq!(names(user.events(&id, 0).await), told(&[&[(1, "reset")][..], &kept].concat()));
    assert_eq!(names(user.events(&id, 1).await), told(&kept));
    sqlx::query("delete from jobs.event").execute(pool).await.unwrap();
    assert_eq!(names(user.events(&id, 1).await), told(&[(2, "state"), (3, "reset"), (4, "state"), (4, "end")]));
    // What is left when the day of the job's row is gone before it is known to be.
    sqlx::query("update jobs.job_history set token = null, attempt_started_at = null, started_event = null")
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(names(user.events(&id, 1).await), told(&[(4, "reset"), (4, "end")]));
}

/// The offset, state and attempt of each event of a job.
async fn states(user: &User, id: &str) -> Vec<(u64, String, u64)> {
    let events = user.events(id, 0).await.into_iter().filter(|(_, event, _)| event == "state");
    let state = |(offset, _, data): (u64, String, serde_json::Value)| {
        assert_eq!(data["job_id"], id);
        (offset, data["state"].as_str().unwrap().to_owned(), data["attempt"].as_u64().unwrap())
    };
    events.map(state).collect()
}

#[tokio::test]
async fn what_succeeds_at_once_leaves_a_row_in_the_history_and_none_beside_it() {
    let house = House::new().await;
    let pool = house.database.pool();
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let told = |states: &[(u64, &str, u64)]| -> Vec<(u64, String, u64)> {
        states.iter().map(|(offset, state, attempt)| (*offset, (*state).to_owned(), *attempt)).collect()
    };
    house.clock.advance(Duration::from_secs(7));
    let mut stream = user
        .jobs()
        .watch(user.call.request(WatchRequest { id: id.clone(), after_offset: 1 }))
        .await
        .unwrap()
        .into_inner();
    let started = stream.message().await.unwrap().unwrap();
    assert_eq!((started.offset, started.event.as_str()), (2, "state"));
    worker.succeed(&assigned, "{}").await;
    assert_eq!(states(&user, &id).await, told(&[(1, "queued", 0), (2, "running", 1), (3, "succeeded", 1)]));
    let beside = "select (select count(*) from jobs.attempt), (select count(*) from jobs.event where at_offset > 1)";
    assert_eq!(sqlx::query_as::<_, (i64, i64)>(beside).fetch_one(pool).await.unwrap(), (0, 0));
    let request = ListAttemptsRequest { job_id: id.clone(), ..ListAttemptsRequest::default() };
    let attempts = user.jobs().list_attempts(user.call.request(request)).await.unwrap().into_inner().items;
    let job = user.job(&id).await;
    assert_eq!(attempts.len(), 1);
    assert_eq!((attempts[0].number, attempts[0].outcome.as_str()), (1, "succeeded"));
    assert_eq!((&attempts[0].worker_id, &attempts[0].error), (&worker.id, &None));
    assert_eq!((attempts[0].started_at, attempts[0].finished_at), (job.started_at, job.finished_at));
    assert_ne!(job.started_at, job.finished_at);
}

#[tokio::test]
async fn an_attempt_that_ends_otherwise_is_written_down_with_its_start() {
    let house = House::new().await;
    let pool = house.database.pool();
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let started = house.clock.now();
    house.clock.advance(Duration::from_secs(5));
    worker.fail(&assigned, "internal", true).await;
    let at: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select at from jobs.event where at_offset = 2").fetch_one(pool).await.unwrap();
    assert_eq!(at, started);
    house.clock.advance(Duration::from_secs(5));
    worker.credit(1).await;
    let assigned = worker.next_assigned().await;
    worker.succeed(&assigned, "{}").await;
    assert_eq!(user.attempts(&id).await, ["failed", "succeeded"]);
    let states = states(&user, &id).await;
    assert_eq!(
        states.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(),
        (1..=states.len() as u64).collect::<Vec<_>>()
    );
    let words: Vec<&str> = states.iter().map(|(_, state, _)| state.as_str()).collect();
    assert_eq!(words, ["queued", "running", "scheduled", "queued", "running", "succeeded"]);
}

/// As a replica of the version before leaves it that is stopped meanwhile: the start stands in a row of its own.
#[tokio::test]
async fn an_attempt_that_an_older_replica_started_ends_as_it_did_there() {
    let house = House::new().await;
    let pool = house.database.pool();
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    let before = "insert into jobs.event select * from jobs.any_event where at_offset = 2;
                  update jobs.job set started_event = null";
    sqlx::raw_sql(before).execute(pool).await.unwrap();
    worker.succeed(&assigned, "{}").await;
    assert_eq!(user.attempts(&id).await, ["succeeded"]);
    let words: Vec<String> = states(&user, &id).await.into_iter().map(|(_, state, _)| state).collect();
    assert_eq!(words, ["queued", "running", "succeeded"]);
}

#[tokio::test]
async fn a_stream_that_is_full_says_so_and_still_tells_states_and_shows_progress() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(1).await;
    let id = user.submit(spec("work", "{}")).await;
    let assigned = worker.next_assigned().await;
    sqlx::query("update jobs.job set events = 19998").execute(house.database.pool()).await.unwrap();
    for number in 1..=3 {
        worker.send(line(&assigned, format!("line {number}"))).await;
    }
    worker.send(progress(&assigned, 70.0)).await;
    worker.succeed(&assigned, "{}").await;
    let events = user.events(&id, 19_998).await;
    let shown: Vec<_> = events.iter().map(|(at, event, data)| (*at, event.as_str(), data["level"].as_str())).collect();
    assert_eq!(
        shown,
        [(19_999, "log", Some("info")), (20_000, "log", Some("warn")), (20_001, "state", None), (20_001, "end", None)]
    );
    assert_eq!(user.job(&id).await.progress.unwrap().percent, 70.0);
}
