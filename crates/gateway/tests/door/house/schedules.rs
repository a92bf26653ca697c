//! The schedules of the stand-in for `jobs`: it shows what it was asked to make.

use proto::jobs::{
    BackfillScheduleRequest, BackfillScheduleResponse, CreateScheduleRequest, GetScheduleRequest, ListSchedulesRequest,
    ListSchedulesResponse, PauseScheduleRequest, PreviewScheduleRequest, PreviewScheduleResponse, PreviewedOccurrence,
    RemoveScheduleRequest, RemoveScheduleResponse, ResumeScheduleRequest, RunScheduleRequest, RunScheduleResponse,
    Schedule, ScheduleRun, ScheduleSpec, ScheduleTiming, UpdateScheduleRequest, schedules_server::Schedules,
};
use tonic::{Request, Response, Status};

use super::jobs::{FOREIGN, Jobs};

const SOMEBODYS: &str = "0190a000-0000-7000-8000-000000000007";

impl Jobs {
    fn schedule(&self, id: &str, spec: Option<ScheduleSpec>) -> Result<Response<Schedule>, Status> {
        if id == FOREIGN {
            return Err(kit::Fail::not_found("schedules.not_found", "There is no such schedule.").into());
        }
        let spec = spec.unwrap_or_else(|| ScheduleSpec {
            timing: Some(ScheduleTiming { time_zone: "UTC".into(), ..ScheduleTiming::default() }),
            job: Some(proto::jobs::JobSpec::default()),
            ..ScheduleSpec::default()
        });
        let run = ScheduleRun {
            occurrence_at: self.at(),
            kind: "due".into(),
            job_id: SOMEBODYS.into(),
            state: "running".into(),
        };
        Ok(Response::new(Schedule {
            id: id.to_owned(),
            owner_id: SOMEBODYS.into(),
            spec: Some(spec),
            state: "active".into(),
            next_at: self.at(),
            runs: vec![run],
            created_at: self.at(),
            updated_at: self.at(),
            replayed: *self.replays.lock(),
            ..Schedule::default()
        }))
    }
}

#[tonic::async_trait]
impl Schedules for Jobs {
    async fn create(&self, request: Request<CreateScheduleRequest>) -> Result<Response<Schedule>, Status> {
        self.see(&request)?;
        let spec = request.into_inner().spec;
        self.scheduled.lock().extend(spec.clone());
        self.schedule(SOMEBODYS, spec)
    }
    async fn get(&self, request: Request<GetScheduleRequest>) -> Result<Response<Schedule>, Status> {
        self.schedule(&request.get_ref().id, None)
    }
    async fn list(&self, _: Request<ListSchedulesRequest>) -> Result<Response<ListSchedulesResponse>, Status> {
        let items = vec![self.schedule(SOMEBODYS, None)?.into_inner()];
        Ok(Response::new(ListSchedulesResponse { items, next_cursor: "further".into() }))
    }
    async fn update(&self, request: Request<UpdateScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let asked = request.into_inner();
        self.scheduled.lock().extend(asked.spec.clone());
        self.schedule(&asked.id, asked.spec)
    }
    async fn remove(
        &self,
        request: Request<RemoveScheduleRequest>,
    ) -> Result<Response<RemoveScheduleResponse>, Status> {
        self.schedule(&request.get_ref().id, None)?;
        Ok(Response::new(RemoveScheduleResponse {}))
    }
    async fn pause(&self, request: Request<PauseScheduleRequest>) -> Result<Response<Schedule>, Status> {
        let asked = request.into_inner();
        let paused = self.schedule(&asked.id, None)?.into_inner();
        Ok(Response::new(Schedule {
            state: "paused".into(),
            paused_at: self.at(),
            pause_reason: asked.reason,
            next_at: None,
            ..paused
        }))
    }
    async fn resume(&self, request: Request<ResumeScheduleRequest>) -> Result<Response<Schedule>, Status> {
        self.schedule(&request.get_ref().id, None)
    }
    async fn run(&self, request: Request<RunScheduleRequest>) -> Result<Response<RunScheduleResponse>, Status> {
        self.see(&request)?;
        self.schedule(&request.get_ref().id, None)?;
        Ok(Response::new(RunScheduleResponse { job_id: SOMEBODYS.into(), replayed: *self.replays.lock() }))
    }
    async fn backfill(
        &self,
        request: Request<BackfillScheduleRequest>,
    ) -> Result<Response<BackfillScheduleResponse>, Status> {
        self.see(&request)?;
        let asked = request.into_inner();
        self.schedule(&asked.id, None)?;
        let seconds = |at: Option<prost_types::Timestamp>| at.map_or(0, |at| at.seconds);
        let existing = u32::try_from(seconds(asked.until) - seconds(asked.from)).unwrap_or(0);
        Ok(Response::new(BackfillScheduleResponse { job_ids: vec![SOMEBODYS.into()], existing, replayed: false }))
    }
    async fn preview(
        &self,
        request: Request<PreviewScheduleRequest>,
    ) -> Result<Response<PreviewScheduleResponse>, Status> {
        let asked = request.into_inner();
        let item = PreviewedOccurrence {
            at: asked.after.or_else(|| self.at()),
            local: "2026-03-29T03:00:00+02:00".into(),
            utc_offset: "+02:00".into(),
            note: if asked.count == 2 { "clock goes forward".into() } else { String::new() },
        };
        Ok(Response::new(PreviewScheduleResponse { items: vec![item], time_zone_data: "2025b".into() }))
    }
}
