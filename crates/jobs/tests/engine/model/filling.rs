//! How batches are made, filled, closed, cancelled and retried, by a user and by the jobs that fan them out.

use proto::{
    jobs::{
        AddBatchJobsRequest, BatchPolicy, BatchState, CancelBatchRequest, CloseBatchRequest, CreateBatchRequest,
        FinalizeSpec, JobState, RetryBatchRequest,
    },
    worker::{AddSiblingsRequest, AttemptRef, FanOutJob, FanOutRequest, Sibling},
};

use super::{
    batches::{Batch, Policy},
    commands::verdict,
    drawing::{Child, Drawn, JOBS_MAX},
    driver::Driver,
    job::Job,
};

fn asked_policy(policy: Policy) -> BatchPolicy {
    let (kind, at_least) = match policy {
        Policy::Always => ("always", None),
        Policy::All => ("all", None),
        Policy::AtLeast(1) => ("any", None),
        Policy::AtLeast(number) => ("threshold", Some(number)),
    };
    BatchPolicy { kind: kind.to_owned(), at_least }
}

impl Driver {
    /// Children for a job at work: those that it has not fanned out before, and one that it has.
    pub(super) async fn fan_out(&mut self, id: &str) -> String {
        let job = self.model.job(id).clone();
        let attempt = Some(AttemptRef { job_id: id.to_owned(), token: job.token });
        let known = job.child_batch.as_ref().map_or(0, |batch| self.model.batch(batch).known_of(id));
        let finalizes = self.draw_policy(None);
        let children = self.draw_children(known);
        let jobs = children.iter().map(|child| FanOutJob {
            ordinal: child.number,
            task: child.task.to_owned(),
            args_json: child.args.clone(),
            after: child.after.clone(),
        });
        let policy = finalizes.map(asked_policy);
        let asked = FanOutRequest {
            attempt,
            jobs: jobs.collect(),
            finalize_task: if finalizes.is_some() { "finish" } else { "" }.to_owned(),
            finalize_args_json: "{}".to_owned(),
            policy: policy.as_ref().map(|policy| policy.kind.clone()).unwrap_or_default(),
            policy_at_least: policy.and_then(|policy| policy.at_least),
        };
        let worker = self.a_hand().await;
        let worker = &self.hand(&worker).worker;
        let batch = worker.attempts().fan_out(worker.request(asked)).await.unwrap().into_inner().batch_id;
        assert!(job.child_batch.is_none_or(|known| known == batch), "{id} has two batches");
        self.model.job(id).child_batch = Some(batch.clone());
        self.model.batches.entry(batch.clone()).or_insert_with(|| Batch::new(finalizes, Some(id.to_owned())));
        let new: Vec<Child> = children.into_iter().filter(|child| child.number >= known).collect();
        self.say(format!("{id} fans out {new:?} into {batch}"));
        let args: Vec<&str> = new.iter().map(|child| child.args.as_str()).collect();
        let ids = self.find(&batch, &args).await;
        self.take_numbered(&batch, id, &ids, new);
        batch
    }

    /// A job at work adds others to the batch that waits for it, which one has that it has added before.
    pub(super) async fn grow(&mut self) {
        let mut held = self.model.held();
        if self.random.percent(90) {
            held.retain(|id| self.model.jobs[id].batch.is_some());
        }
        let Some(id) = self.random.pick(&held).cloned() else { return };
        let job = self.model.job(&id).clone();
        let batch = job.batch.filter(|_| !job.is_finalize);
        let row = batch.as_ref().map(|batch| &self.model.batches[batch]);
        let known = row.map_or(0, |row| row.known_of(&id));
        let expected = match row {
            None => Err("jobs.not_in_a_batch"),
            Some(row) if row.is_stopping => Err("jobs.batch_cancelling"),
            Some(_) => Ok(()),
        };
        let children = self.draw_children(known);
        self.say(format!("{id} adds {children:?} to {batch:?}: {expected:?}"));
        let jobs = children.iter().map(|child| Sibling {
            number: child.number,
            task: child.task.to_owned(),
            args_json: child.args.clone(),
            after: child.after.clone(),
        });
        let attempt = Some(AttemptRef { job_id: id.clone(), token: job.token });
        let asked = AddSiblingsRequest { attempt, jobs: jobs.collect() };
        let worker = self.a_hand().await;
        let worker = &self.hand(&worker).worker;
        let answer = worker.attempts().add_siblings(worker.request(asked)).await;
        if let (Ok(answer), Some(batch)) = (&answer, &batch) {
            let mut new = Vec::new();
            let mut ids = Vec::new();
            for (child, job) in children.into_iter().zip(&answer.get_ref().job_ids) {
                match self.model.batches[batch].numbered.get(&(id.clone(), child.number)) {
                    Some(there) => assert_eq!(job, there, "{id} has added {child:?} before"),
                    None => {
                        new.push(child);
                        ids.push(job.clone());
                    }
                }
            }
            self.take_numbered(batch, &id, &ids, new);
        }
        assert_eq!(verdict(answer), expected.map_err(str::to_owned), "{id} adds to {batch:?}");
    }

    /// Jobs are there that a job has numbered.
    fn take_numbered(&mut self, batch: &str, by: &str, ids: &[String], new: Vec<Child>) {
        let (now, priority) = (self.model.now, self.model.job(by).priority);
        for (id, child) in ids.iter().zip(new) {
            let numbered = &mut self.model.batch(batch).numbered;
            let after: Vec<String> =
                child.after.iter().map(|number| numbered[&(by.to_owned(), *number)].clone()).collect();
            numbered.insert((by.to_owned(), child.number), id.clone());
            let job = Job { priority, batch: Some(batch.to_owned()), ..Job::new(child.task, now, now) };
            self.model.add(id, job.settled().waiting(after));
        }
    }

    /// The jobs that were made in a batch, by their arguments.
    async fn find(&self, batch: &str, args: &[&str]) -> Vec<String> {
        let shown = self.look().await.jobs;
        let find = |args: &&str| {
            let mut found = shown.values().filter(|shown| shown.args_json == *args && shown.batch_id == batch);
            let id = found.next().unwrap_or_else(|| panic!("{batch} has no job for {args}")).id.clone();
            assert!(found.next().is_none(), "{batch} has two jobs for {args}");
            id
        };
        args.iter().map(find).collect()
    }

    pub(super) async fn make_batch(&mut self) {
        let count = self.random.below(JOBS_MAX + 1);
        let drawn = self.draw_jobs(count);
        let is_open = self.random.percent(40);
        let finalizes = self.draw_policy(Some(count).filter(|_| !is_open));
        let asked = CreateBatchRequest {
            jobs: drawn.iter().map(|drawn| drawn.spec.clone()).collect(),
            finalize: finalizes.map(|_| FinalizeSpec { task: "finish".to_owned(), args_json: String::new() }),
            open: is_open,
            policy: finalizes.map(asked_policy),
        };
        let batch = self.user.batches().create(self.user.call.request(asked)).await.unwrap().into_inner().id;
        self.say(format!("a batch {batch} (finalizes: {finalizes:?}, open: {is_open}) of {}", Drawn::told(&drawn)));
        assert!(self.model.batches.insert(batch.clone(), Batch::new(finalizes, None)).is_none());
        let args: Vec<&str> = drawn.iter().map(|drawn| drawn.spec.args_json.as_str()).collect();
        let ids = self.find(&batch, &args).await;
        self.take_in(Some(&batch), &ids, drawn);
        if !is_open {
            self.model.close(&batch, false);
        }
    }

    pub(super) async fn change_batch(&mut self) {
        let ids: Vec<String> = self.model.batches.keys().cloned().collect();
        let Some(id) = self.random.pick(&ids).cloned() else { return };
        match self.random.below(4) {
            0 => self.add_to_batch(&id).await,
            1 => self.close_batch(&id).await,
            2 => self.retry_batch(&id).await,
            _ => self.cancel_batch(&id).await,
        }
    }

    /// Only who has made a batch fills and closes it.
    fn may_fill(&self, id: &str) -> Result<(), &'static str> {
        if self.model.batches[id].parent.is_some() { Err("jobs.batch_of_a_job") } else { Ok(()) }
    }

    async fn add_to_batch(&mut self, id: &str) {
        let drawn = self.draw_jobs(2);
        let is_open = self.model.batch(id).state == BatchState::Open;
        let expected = self.may_fill(id).and(if is_open { Ok(()) } else { Err("jobs.batch_closed") });
        self.say(format!("added to {id}: {expected:?}: {}", Drawn::told(&drawn)));
        let jobs = drawn.iter().map(|drawn| drawn.spec.clone()).collect();
        let asked = AddBatchJobsRequest { batch_id: id.to_owned(), jobs };
        let answer = self.user.batches().add_jobs(self.user.call.request(asked)).await;
        if let Ok(answer) = &answer {
            let ids: Vec<String> = answer.get_ref().items.iter().map(|item| item.id.clone()).collect();
            self.take_in(Some(id), &ids, drawn);
        }
        assert_eq!(verdict(answer), expected.map_err(str::to_owned), "adding to {id}");
    }

    async fn close_batch(&mut self, id: &str) {
        let expected = self.may_fill(id);
        self.say(format!("{id} is closed: {expected:?}"));
        let asked = CloseBatchRequest { id: id.to_owned() };
        let done = verdict(self.user.batches().close(self.user.call.request(asked)).await);
        assert_eq!(done, expected.map_err(str::to_owned), "closing {id}");
        if expected.is_ok() {
            self.model.close(id, false);
        }
    }

    async fn cancel_batch(&mut self, id: &str) {
        let expected = self.model.cancel_batch(id);
        self.say(format!("{id} is cancelled: {expected:?}"));
        let asked = CancelBatchRequest { id: id.to_owned(), reason: "enough".to_owned() };
        let done = verdict(self.user.batches().cancel(self.user.call.request(asked)).await);
        assert_eq!(done, expected.map_err(str::to_owned), "cancelling {id}");
    }

    async fn retry_batch(&mut self, id: &str) {
        let mut states = vec![JobState::Failed, JobState::Expired, JobState::Cancelled];
        if self.random.percent(40) {
            states.remove(self.random.below(states.len()));
        }
        let expected = self.model.retry_batch(id, &states);
        self.say(format!("of {id} is retried what ended as {states:?}: {expected:?}"));
        let asked = RetryBatchRequest { id: id.to_owned(), states: states.into_iter().map(i32::from).collect() };
        let done = verdict(self.user.batches().retry(self.user.call.request(asked)).await);
        assert_eq!(done, expected.map_err(str::to_owned), "retrying {id}");
    }
}
