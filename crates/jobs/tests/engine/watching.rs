//! Live streams: everything after an offset, once, in order, to its end.

use proto::{
    jobs::WatchRequest,
    worker::{LogEntry, ProgressUpdate, Report, from_worker},
};

use crate::house::{House, spec};

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
