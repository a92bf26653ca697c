//! What a batch's policy makes of its jobs' ends: a finalize, or an end without one that says why.

use proto::{
    jobs::{Batch, BatchPolicy, BatchState, CancelBatchRequest, CreateBatchRequest, FinalizeSpec, JobState},
    worker::{FanOutJob, FanOutRequest, ListChildrenRequest, outcome},
};

use crate::house::{House, User, failed, spec, succeeded, suspended};

pub(crate) fn policy(kind: &str, at_least: Option<u32>) -> BatchPolicy {
    BatchPolicy { kind: kind.to_owned(), at_least }
}

fn asked(jobs: usize, policy: BatchPolicy) -> CreateBatchRequest {
    let finalize = Some(FinalizeSpec { task: "finish".into(), args_json: String::new() });
    let jobs = (0..jobs).map(|_| spec("work", "{}")).collect();
    CreateBatchRequest { jobs, finalize, open: false, policy: Some(policy) }
}

pub(crate) async fn create(user: &User, jobs: usize, policy: BatchPolicy) -> Batch {
    user.batches().create(user.call.request(asked(jobs, policy))).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_batch_is_finalized_only_when_its_policy_is_met() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(100).await;
    for (asked, successes, skipped) in [
        (policy("always", None), 0, None),
        (policy("all", None), 3, None),
        (policy("all", None), 2, Some("2 of 3 succeeded, all were asked for.")),
        (policy("any", None), 1, None),
        (policy("any", None), 0, Some("0 of 3 succeeded, 1 was asked for.")),
        (policy("threshold", Some(2)), 2, None),
        (policy("threshold", Some(2)), 1, Some("1 of 3 succeeded, 2 were asked for.")),
    ] {
        let batch = create(&user, 3, asked.clone()).await;
        assert_eq!(batch.policy, Some(asked));
        let children = worker.assigned(3).await;
        let end = |n| if n < successes { succeeded("{}") } else { failed("provider", false) };
        let ends: Vec<outcome::End> = (0..3).map(end).collect();
        worker.tell(children.iter().zip(ends).collect()).await;
        if skipped.is_none() {
            let finalize = worker.next_assigned().await;
            assert_eq!((finalize.finalize, finalize.batch_id.as_str()), (true, batch.id.as_str()));
            worker.succeed(&finalize, "{}").await;
        }
        let over = user.get_batch(&batch.id).await;
        assert_eq!(over.state(), BatchState::Finished);
        assert_eq!(over.finalize_skipped, skipped.unwrap_or_default());
        assert_eq!(over.finalize_job_id.is_empty(), skipped.is_some());
        let [round] = over.finalizes.as_slice() else { panic!("one round: {:?}", over.finalizes) };
        assert_eq!((round.round, round.reason.as_str()), (1, skipped.unwrap_or_default()));
        assert_eq!(round.state, if skipped.is_some() { "skipped" } else { "succeeded" });
        assert_eq!(round.counts.unwrap().succeeded, successes);
        let told = user.batch_events(&batch.id, 0).await;
        let last = told.iter().rev().find(|(_, event, _)| event == "batch").unwrap();
        assert_eq!(last.2["finalize_skipped"].as_str(), skipped);
    }
}

#[tokio::test]
async fn a_parent_whose_batch_did_not_meet_its_policy_fails_and_says_so() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(4).await;
    let id = user.submit(spec("process", "{}")).await;
    let parent = worker.next_assigned().await;
    let child = |ordinal| FanOutJob { ordinal, task: "work".into(), args_json: "{}".into(), after: Vec::new() };
    let asked = FanOutRequest {
        attempt: parent.attempt.clone(),
        jobs: vec![child(0), child(1)],
        finalize_task: "finish".into(),
        finalize_args_json: "{}".into(),
        policy: "threshold".into(),
        policy_at_least: Some(2),
    };
    let batch = worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id;
    worker.tell(vec![(&parent, suspended(&batch))]).await;
    let children = worker.assigned(2).await;
    worker.tell(vec![(&children[0], succeeded("{}")), (&children[1], failed("provider", false))]).await;
    let job = user.job(&id).await;
    let error = job.error.clone().unwrap();
    assert_eq!((job.state(), error.kind.as_str(), error.retryable), (JobState::Failed, "batch_policy", false));
    assert_eq!(error.message, "Its child batch was not finalized: 1 of 2 succeeded, 2 were asked for.");
}

#[tokio::test]
async fn a_cancelled_batch_that_must_succeed_as_a_whole_ends_without_a_finalize() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    let batch = create(&user, 3, policy("all", None)).await;
    let cancel = CancelBatchRequest { id: batch.id.clone(), reason: String::new() };
    user.batches().cancel(user.call.request(cancel)).await.unwrap();
    let over = user.get_batch(&batch.id).await;
    assert_eq!(over.state(), BatchState::Cancelled);
    assert_eq!(over.finalize_skipped, "0 of 3 succeeded, all were asked for.");
}

#[tokio::test]
async fn a_policy_that_decides_nothing_or_cannot_be_met_is_refused() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    drop(house.stranger_worker("").await);
    for (finalize, policy, pointer) in [
        (false, policy("all", None), "/policy"),
        (true, policy("most", None), "/policy/kind"),
        (true, policy("threshold", None), "/policy/at_least"),
        (true, policy("threshold", Some(4)), "/policy/at_least"),
        (true, policy("any", Some(1)), "/policy/at_least"),
    ] {
        let mut asked = asked(3, policy);
        asked.finalize.take_if(|_| !finalize);
        let refused = kit::Fail::from(user.batches().create(user.call.request(asked)).await.unwrap_err());
        assert_eq!((refused.code(), refused.violations()[0].pointer.as_str()), ("jobs.invalid", pointer));
    }
    let open = CreateBatchRequest { open: true, ..asked(0, policy("threshold", Some(100_000))) };
    user.batches().create(user.call.request(open)).await.expect("more jobs may come");
}

#[tokio::test]
async fn a_finalize_reads_what_failed_with_kind_and_message() {
    let house = House::new().await;
    let user = house.user(&["operator"]);
    let mut worker = house.worker(3).await;
    create(&user, 2, policy("any", None)).await;
    let children = worker.assigned(2).await;
    worker.tell(vec![(&children[0], succeeded("1")), (&children[1], failed("provider", false))]).await;
    let finalize = worker.next_assigned().await;
    let asked = ListChildrenRequest { attempt: finalize.attempt.clone(), after_ordinal: None, limit: 10 };
    let page = worker.attempts().list_children(worker.request(asked)).await.unwrap().into_inner();
    let told: Vec<_> = page.items.iter().map(|child| (child.state.as_str(), child.error_kind.as_str())).collect();
    assert_eq!(told, [("succeeded", ""), ("failed", "provider")]);
    assert_eq!((page.items[0].result_json.as_str(), page.items[1].error_message.as_str()), ("1", "It did not work."));
}
