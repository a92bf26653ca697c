//! Stands in for `jobs`.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use kit::{
    Clock, Fail,
    grpc::{Call, IdempotencyKey},
    storage::Storage,
};
use parking_lot::Mutex;
use proto::jobs::{
    AbandonFilesRequest, AbandonFilesResponse, AddBatchJobsRequest, Batch, BatchCounts, BatchFinalize, BatchState,
    CancelBatchRequest, CancelJobRequest, CloseBatchRequest, CompleteFilesRequest, CompleteFilesResponse,
    CreateBatchRequest, ExtendFilesRequest, File, GetBatchRequest, GetFileRequest, GetJobRequest, Job, JobSpec,
    JobState, ListAttemptsRequest, ListAttemptsResponse, ListBatchesRequest, ListBatchesResponse, ListFilesRequest,
    ListFilesResponse, ListJobsRequest, ListJobsResponse, ListLogsRequest, ListLogsResponse, ListQueuesRequest,
    ListQueuesResponse, ListTasksRequest, ListTasksResponse, ListWorkersRequest, ListWorkersResponse, LiveEvent,
    PauseQueueRequest, Queue, RemoveFileRequest, RemoveFileResponse, ReserveFilesRequest, ReserveFilesResponse,
    ReservedFile, ResumeQueueRequest, RetryBatchRequest, RetryJobRequest, ScheduleSpec, SubmitJobsRequest,
    SubmitJobsResponse, SubmittedJob, Task, UpdateQueueRequest, UpdateTaskRequest, WatchRequest,
    batches_server::{Batches, BatchesServer},
    files_server::{Files, FilesServer},
    jobs_server::{Jobs as JobsService, JobsServer},
    queues_server::{Queues, QueuesServer},
    schedules_server::SchedulesServer,
    tasks_server::{Tasks, TasksServer},
    workers_server::{Workers, WorkersServer},
};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, service::Routes};
use uuid::Uuid;

type Events = Pin<Box<dyn Stream<Item = Result<LiveEvent, Status>> + Send>>;

/// One id is a stranger's.
pub(crate) const FOREIGN: &str = "0190a000-0000-7000-8000-00000000f0e1";

pub(crate) struct Jobs {
    clock: Clock,
    /// The role removes the bytes of what was given up.
    storage: Storage,
    pub(crate) file_bytes_max: Mutex<u64>,
    pub(crate) quota_left_bytes: Mutex<u64>,
    pub(crate) replays: Mutex<bool>,
    pub(crate) calls: Mutex<Vec<Seen>>,
    pub(crate) submitted: Mutex<Vec<SubmitJobsRequest>>,
    pub(crate) scheduled: Mutex<Vec<ScheduleSpec>>,
    pub(crate) listed: Mutex<Option<ListJobsRequest>>,
    pub(crate) retried: Mutex<Vec<JobState>>,
    pub(crate) watched: Mutex<Option<WatchRequest>>,
    /// The role's end of the stream that was opened last.
    pub(crate) stream: watch::Sender<Option<mpsc::Sender<Result<LiveEvent, Status>>>>,
    /// By their tickets.
    pub(crate) uploads: Mutex<HashMap<String, Upload>>,
    pub(crate) abandoned: watch::Sender<Vec<String>>,
    pub(crate) reserves: watch::Sender<u32>,
    files: Mutex<HashMap<String, File>>,
    /// Calls of `Jobs/Get` and `Files/Extend` wait for it to be open.
    pub(crate) gate: watch::Sender<bool>,
    pub(crate) waiting: watch::Sender<u32>,
}

/// What a call carried.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) subject: Uuid,
    pub(crate) request_id: String,
    pub(crate) traceparent: Option<String>,
    pub(crate) idempotency: Option<IdempotencyKey>,
}

pub(crate) struct Upload {
    owner: Uuid,
    rows: Vec<Row>,
}

struct Row {
    id: String,
    name: String,
    storage_key: String,
}

pub(crate) fn routes(jobs: &Arc<Jobs>) -> Routes {
    Routes::new(JobsServer::from_arc(jobs.clone()))
        .add_service(BatchesServer::from_arc(jobs.clone()))
        .add_service(FilesServer::from_arc(jobs.clone()))
        .add_service(TasksServer::from_arc(jobs.clone()))
        .add_service(QueuesServer::from_arc(jobs.clone()))
        .add_service(SchedulesServer::from_arc(jobs.clone()))
        .add_service(WorkersServer::from_arc(jobs.clone()))
}

impl Jobs {
    pub(super) fn new(clock: Clock, storage: Storage) -> Self {
        Self {
            clock,
            storage,
            file_bytes_max: Mutex::new(64 * 1024 * 1024),
            quota_left_bytes: Mutex::new(128 * 1024 * 1024),
            replays: Mutex::default(),
            retried: Mutex::default(),
            calls: Mutex::default(),
            submitted: Mutex::default(),
            scheduled: Mutex::default(),
            listed: Mutex::default(),
            watched: Mutex::default(),
            stream: watch::Sender::new(None),
            uploads: Mutex::default(),
            abandoned: watch::Sender::default(),
            reserves: watch::Sender::new(0),
            files: Mutex::default(),
            gate: watch::Sender::new(true),
            waiting: watch::Sender::new(0),
        }
    }

    pub(crate) fn last_call(&self) -> Seen {
        self.calls.lock().last().cloned().expect("a call")
    }

    pub(super) fn see<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let call = Call::of(request)?;
        self.seen(call, call.caller()?.subject);
        Ok(())
    }

    fn seen(&self, call: &Call, subject: Uuid) {
        self.calls.lock().push(Seen {
            subject,
            request_id: call.request_id.clone(),
            traceparent: call.traceparent.clone(),
            idempotency: call.idempotency.clone(),
        });
    }

    /// Rows for further files of an upload that is there.
    fn reserved(&self, ticket: String, names: Vec<String>) -> Result<Response<ReserveFilesResponse>, Status> {
        let mut items = Vec::new();
        {
            let mut uploads = self.uploads.lock();
            let upload = uploads.get_mut(&ticket).ok_or_else(no_upload)?;
            for name in names {
                let id = self.clock.new_id().to_string();
                let storage_key = format!("files/{id}");
                items.push(ReservedFile { id: id.clone(), storage_key: storage_key.clone() });
                upload.rows.push(Row { id, name, storage_key });
            }
        }
        self.reserves.send_modify(|count| *count += 1);
        Ok(Response::new(ReserveFilesResponse {
            items,
            quota_left_bytes: *self.quota_left_bytes.lock(),
            file_bytes_max: *self.file_bytes_max.lock(),
            lease_s: 60,
            ticket,
        }))
    }

    async fn pass(&self) {
        self.waiting.send_modify(|count| *count += 1);
        self.gate.subscribe().wait_for(|is_open| *is_open).await.unwrap();
    }

    fn own(&self, id: &str, noun: &str) -> Result<(), Status> {
        if id == FOREIGN {
            return Err(Fail::not_found(format!("jobs.{noun}_not_found"), format!("There is no such {noun}.")).into());
        }
        Ok(())
    }

    pub(super) fn at(&self) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 })
    }

    fn job(&self, id: String) -> Job {
        Job {
            id,
            task: "demo_echo".into(),
            queue: "default".into(),
            max_attempts: 3,
            state: JobState::Queued.into(),
            owner_id: Uuid::nil().to_string(),
            args_json: r#"{"value":1.50}"#.into(),
            priority: 50,
            created_at: self.at(),
            ..Job::default()
        }
    }

    fn batch(&self, id: String) -> Batch {
        Batch {
            id,
            state: BatchState::Running.into(),
            counts: Some(BatchCounts { total: 3, succeeded: 1, ..BatchCounts::default() }),
            created_at: self.at(),
            replayed: *self.replays.lock(),
            ..Batch::default()
        }
    }

    fn open_stream(&self, request: WatchRequest) -> Response<Events> {
        let (sender, receiver) = mpsc::channel(16);
        *self.watched.lock() = Some(request);
        self.stream.send_replace(Some(sender));
        Response::new(Box::pin(ReceiverStream::new(receiver)))
    }

    /// The stream that is open now.
    pub(crate) fn streaming(&self) -> mpsc::Sender<Result<LiveEvent, Status>> {
        self.stream.borrow().clone().expect("a stream is open")
    }
}

#[tonic::async_trait]
impl JobsService for Jobs {
    type WatchStream = Events;

    async fn submit(&self, request: Request<SubmitJobsRequest>) -> Result<Response<SubmitJobsResponse>, Status> {
        self.see(&request)?;
        let request = request.into_inner();
        self.submitted.lock().push(request.clone());
        if let Some(at) = request.jobs.iter().position(|job| job.task == "unknown") {
            let pointer = format!("/jobs/{at}/task");
            return Err(Fail::invalid("jobs.invalid", "The jobs do not fit.")
                .at(pointer, "unknown_task", "There is no such task.")
                .into());
        }
        let is_refused = |job: &JobSpec| job.unique.as_ref().is_some_and(|unique| unique.on_conflict == "refuse");
        if let Some(at) = request.jobs.iter().position(is_refused) {
            return Err(Fail::conflict("jobs.unique_key_held", "Another job holds this unique key.")
                .at(format!("/jobs/{at}/unique_key"), "unique", "the job 1 holds it")
                .into());
        }
        let items: Vec<_> = request
            .jobs
            .iter()
            .map(|job| SubmittedJob {
                id: self.clock.new_id().to_string(),
                existing: job.unique_key.as_deref() == Some("held"),
            })
            .collect();
        let unique_key = request.jobs[0].unique_key.clone().unwrap_or_default();
        let job = (items.len() == 1).then(|| Job { unique_key, ..self.job(items[0].id.clone()) });
        Ok(Response::new(SubmitJobsResponse { items, replayed: *self.replays.lock(), job }))
    }
    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<Job>, Status> {
        self.see(&request)?;
        let id = request.into_inner().id;
        self.own(&id, "job")?;
        self.pass().await;
        Ok(Response::new(self.job(id)))
    }
    async fn list(&self, request: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        *self.listed.lock() = Some(request.into_inner());
        let items = vec![self.job(self.clock.new_id().to_string())];
        Ok(Response::new(ListJobsResponse { items, next_cursor: "more".into() }))
    }
    async fn cancel(&self, request: Request<CancelJobRequest>) -> Result<Response<Job>, Status> {
        let request = request.into_inner();
        self.own(&request.id, "job")?;
        let mut job = self.job(request.id);
        job.state = JobState::Cancelling.into();
        job.waiting_reason = Some(proto::jobs::WaitingReason { reason: request.reason, ..Default::default() });
        Ok(Response::new(job))
    }
    async fn retry(&self, request: Request<RetryJobRequest>) -> Result<Response<Job>, Status> {
        self.own(&request.get_ref().id, "job")?;
        Ok(Response::new(self.job(request.into_inner().id)))
    }
    async fn list_attempts(
        &self,
        request: Request<ListAttemptsRequest>,
    ) -> Result<Response<ListAttemptsResponse>, Status> {
        self.own(&request.get_ref().job_id, "job")?;
        Ok(Response::new(ListAttemptsResponse::default()))
    }
    async fn list_logs(&self, request: Request<ListLogsRequest>) -> Result<Response<ListLogsResponse>, Status> {
        self.own(&request.get_ref().job_id, "job")?;
        Ok(Response::new(ListLogsResponse::default()))
    }
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Events>, Status> {
        self.own(&request.get_ref().id, "job")?;
        Ok(self.open_stream(request.into_inner()))
    }
}

#[tonic::async_trait]
impl Batches for Jobs {
    type WatchStream = Events;

    async fn create(&self, request: Request<CreateBatchRequest>) -> Result<Response<Batch>, Status> {
        self.see(&request)?;
        let policy = request.get_ref().policy.clone();
        Ok(Response::new(Batch { policy, ..self.batch(self.clock.new_id().to_string()) }))
    }
    async fn add_jobs(&self, request: Request<AddBatchJobsRequest>) -> Result<Response<SubmitJobsResponse>, Status> {
        self.own(&request.get_ref().batch_id, "batch")?;
        Ok(Response::new(SubmitJobsResponse::default()))
    }
    async fn close(&self, request: Request<CloseBatchRequest>) -> Result<Response<Batch>, Status> {
        self.own(&request.get_ref().id, "batch")?;
        Ok(Response::new(self.batch(request.into_inner().id)))
    }
    async fn get(&self, request: Request<GetBatchRequest>) -> Result<Response<Batch>, Status> {
        self.own(&request.get_ref().id, "batch")?;
        Ok(Response::new(self.batch(request.into_inner().id)))
    }
    async fn list(&self, _: Request<ListBatchesRequest>) -> Result<Response<ListBatchesResponse>, Status> {
        Ok(Response::new(ListBatchesResponse::default()))
    }
    async fn cancel(&self, request: Request<CancelBatchRequest>) -> Result<Response<Batch>, Status> {
        self.own(&request.get_ref().id, "batch")?;
        Ok(Response::new(self.batch(request.into_inner().id)))
    }
    async fn retry(&self, request: Request<RetryBatchRequest>) -> Result<Response<Batch>, Status> {
        self.own(&request.get_ref().id, "batch")?;
        *self.retried.lock() = request.get_ref().states().collect();
        let round =
            BatchFinalize { round: 1, state: "skipped".into(), started_at: self.at(), ..BatchFinalize::default() };
        let batch = self.batch(request.into_inner().id);
        Ok(Response::new(Batch { retrying: true, finalizes: vec![round], ..batch }))
    }
    async fn watch(&self, request: Request<WatchRequest>) -> Result<Response<Events>, Status> {
        self.own(&request.get_ref().id, "batch")?;
        Ok(self.open_stream(request.into_inner()))
    }
}

/// An upload may outlive its caller's token, so a ticket goes alone.
fn shows_no_token<T>(request: &Request<T>) {
    assert!(!request.metadata().contains_key("authorization"), "a token beside a ticket");
}

fn no_upload() -> Fail {
    Fail::not_found("files.upload_not_found", "There is no such upload.")
}

#[tonic::async_trait]
impl Files for Jobs {
    async fn reserve(&self, request: Request<ReserveFilesRequest>) -> Result<Response<ReserveFilesResponse>, Status> {
        let owner = Call::of(&request)?.caller()?.subject;
        let ticket = format!("ticket {}", self.clock.new_id());
        self.uploads.lock().insert(ticket.clone(), Upload { owner, rows: Vec::new() });
        self.reserved(ticket, request.into_inner().names)
    }
    async fn extend(&self, request: Request<ExtendFilesRequest>) -> Result<Response<ReserveFilesResponse>, Status> {
        shows_no_token(&request);
        self.pass().await;
        let request = request.into_inner();
        self.reserved(request.ticket, request.names)
    }
    async fn complete(
        &self,
        request: Request<CompleteFilesRequest>,
    ) -> Result<Response<CompleteFilesResponse>, Status> {
        shows_no_token(&request);
        let Upload { owner, mut rows } = self.uploads.lock().remove(&request.get_ref().ticket).ok_or_else(no_upload)?;
        self.seen(Call::of(&request)?, owner);
        let request = request.into_inner();
        let replayed = *self.replays.lock();
        if replayed {
            return Ok(Response::new(CompleteFilesResponse { items: Vec::new(), replayed }));
        }
        let mut items = Vec::new();
        for done in request.files {
            let row = rows.remove(rows.iter().position(|row| row.id == done.id).expect("a reserved file"));
            let file = File {
                id: row.id,
                name: row.name,
                content_type: done.content_type,
                size_bytes: done.size_bytes,
                sha256: done.sha256,
                created_at: self.at(),
                owner_id: owner.to_string(),
                storage_key: row.storage_key,
            };
            self.files.lock().insert(file.id.clone(), file.clone());
            items.push(file);
        }
        Ok(Response::new(CompleteFilesResponse { items, replayed }))
    }
    async fn abandon(&self, request: Request<AbandonFilesRequest>) -> Result<Response<AbandonFilesResponse>, Status> {
        shows_no_token(&request);
        let ticket = request.into_inner().ticket;
        let upload = self.uploads.lock().remove(&ticket).ok_or_else(no_upload)?;
        for row in upload.rows {
            self.storage.remove(&row.storage_key).await?;
        }
        self.abandoned.send_modify(|tickets| tickets.push(ticket));
        Ok(Response::new(AbandonFilesResponse {}))
    }
    async fn get(&self, request: Request<GetFileRequest>) -> Result<Response<File>, Status> {
        let caller = Call::of(&request)?.caller()?.subject.to_string();
        let file = self.files.lock().get(&request.get_ref().id).filter(|file| file.owner_id == caller).cloned();
        file.map(Response::new).ok_or_else(|| Fail::not_found("files.not_found", "There is no such file.").into())
    }
    async fn list(&self, _: Request<ListFilesRequest>) -> Result<Response<ListFilesResponse>, Status> {
        Ok(Response::new(ListFilesResponse::default()))
    }
    async fn remove(&self, request: Request<RemoveFileRequest>) -> Result<Response<RemoveFileResponse>, Status> {
        self.own(&request.get_ref().id, "file")?;
        Ok(Response::new(RemoveFileResponse {}))
    }
}

#[tonic::async_trait]
impl Tasks for Jobs {
    async fn list(&self, _: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let task = Task {
            name: "demo_echo".into(),
            queue: "default".into(),
            schema_json: r#"{"type":"object"}"#.into(),
            description: "Says it again.".into(),
            workers: 1,
            concurrency: None,
        };
        Ok(Response::new(ListTasksResponse { items: vec![task], next_cursor: String::new() }))
    }
    async fn update(&self, request: Request<UpdateTaskRequest>) -> Result<Response<Task>, Status> {
        let UpdateTaskRequest { name, concurrency } = request.into_inner();
        Ok(Response::new(Task { name, concurrency, schema_json: "{}".into(), ..Task::default() }))
    }
}

#[tonic::async_trait]
impl Queues for Jobs {
    async fn list(&self, _: Request<ListQueuesRequest>) -> Result<Response<ListQueuesResponse>, Status> {
        let queue = Queue { name: "default".into(), depth: [("queued".to_owned(), 4)].into(), ..Queue::default() };
        Ok(Response::new(ListQueuesResponse { items: vec![queue] }))
    }
    async fn pause(&self, request: Request<PauseQueueRequest>) -> Result<Response<Queue>, Status> {
        let name = request.into_inner().name;
        Ok(Response::new(Queue { name, paused: true, paused_at: self.at(), ..Queue::default() }))
    }
    async fn resume(&self, request: Request<ResumeQueueRequest>) -> Result<Response<Queue>, Status> {
        Ok(Response::new(Queue { name: request.into_inner().name, ..Queue::default() }))
    }
    /// Shows in `depth` which fields were to be set.
    async fn update(&self, request: Request<UpdateQueueRequest>) -> Result<Response<Queue>, Status> {
        let UpdateQueueRequest { name, limits, fields } = request.into_inner();
        let depth = fields.into_iter().map(|field| (field, 1)).collect();
        Ok(Response::new(Queue { name, limits, depth, ..Queue::default() }))
    }
}

#[tonic::async_trait]
impl Workers for Jobs {
    async fn list(&self, _: Request<ListWorkersRequest>) -> Result<Response<ListWorkersResponse>, Status> {
        Ok(Response::new(ListWorkersResponse::default()))
    }
}
