//! What removes files, and what attempts leave: with a real database and real storage, from inside the crate, since
//! nobody outside can call a sweep.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use kit::{Clock, Fail, audit::Act, storage::Storage, tasks::Tasks, testing::TestDatabase};
use proto::{
    jobs::{CompleteFilesRequest, CompletedFile, ExtendFilesRequest, ReserveFilesRequest},
    worker::WrittenFile,
};
use tempfile::TempDir;
use uuid::Uuid;

use super::{
    create_for_attempt, doom, doom_for_attempts, find_whole, make_whole_for_attempts, storage_key, sweep,
    sweep::{check_usage, sweep_files, sweep_storage},
    uploads,
};
use crate::{
    Jobs, MIGRATOR, SCHEMA, Settings, acts,
    engine::{Lead, Told},
};

const MINUTE: Duration = Duration::from_secs(60);

fn untold() -> Told {
    Told::by(metrics::Gauge::noop())
}

struct House {
    jobs: Jobs,
    clock: Clock,
    storage: Storage,
    owner: Uuid,
    folder: TempDir,
    lead: Lead,
    _database: TestDatabase,
}

impl House {
    /// The service, with its own sweeps stopped.
    async fn open() -> Self {
        let database =
            kit::testing::database_with("jobs", |url| async move { kit::db::migrate(&url, SCHEMA, &MIGRATOR).await })
                .await;
        let folder = tempfile::tempdir().expect("a temporary folder");
        let storage = Storage::open(&format!("file://{}", folder.path().display()), None, None).expect("storage");
        let clock = Clock::frozen(Clock::system().now());
        let tasks = Tasks::new();
        tasks.stop();
        let settings = Settings { jobs_connections_max: 5, ..Settings::default() };
        let jobs = Jobs::start(settings, database.url(), storage.clone(), clock.clone(), &tasks, false)
            .await
            .expect("the service starts");
        let lead = Lead::seize(&jobs.core.pool, clock.new_id()).await.expect("the lead");
        Self { owner: clock.new_id(), jobs, clock, storage, folder, lead, _database: database }
    }

    /// An upload of one file whose bytes are stored: its ticket, and the file.
    async fn upload(&self) -> (String, Uuid) {
        let asked = ReserveFilesRequest { names: vec!["a".to_owned()] };
        let reserved = uploads::begin(&self.jobs.core, self.owner, &asked).await.expect("reserved");
        self.write(&reserved.items[0].storage_key).await;
        (reserved.ticket, reserved.items[0].id.parse().expect("an id"))
    }

    /// A whole file of 4 bytes.
    async fn file(&self) -> Uuid {
        let (ticket, id) = self.upload().await;
        let file = CompletedFile {
            id: id.to_string(),
            content_type: "text/plain".to_owned(),
            size_bytes: 4,
            sha256: "0".repeat(64),
        };
        let asked = CompleteFilesRequest { ticket, files: vec![file] };
        uploads::complete(&self.jobs.core, None, asked).await.expect("complete");
        id
    }

    async fn remove(&self, id: Uuid) {
        let act = Act::by_system(&acts::REMOVE_FILE, id);
        doom(&self.jobs.core, id, self.owner, act).await.expect("removed");
    }

    async fn write(&self, key: &str) {
        let mut writer = self.storage.writer(key).expect("a key");
        writer.write(Bytes::from_static(b"four")).await.expect("room");
        writer.finish().await.expect("written");
    }

    fn object(&self, id: Uuid) -> PathBuf {
        self.folder.path().join(storage_key(id))
    }

    /// A job that an attempt of a worker with a lease holds under `token`.
    async fn running_job(&self, token: i64) -> Uuid {
        let id = self.clock.new_id();
        sqlx::query(
            "with worker as (
               insert into jobs.worker (id, profile, host, version, queues, tasks, slots, connected_at, seen_at, expires_at)
               values ($1, '', '', '', '{}', '{}', 1, $3, $3, $3 + interval '1 year')
             )
             insert into jobs.job (id, owner_id, task, queue, state, priority, run_at, rank, attempt, attempts_until,
               max_attempts, attempt_timeout_s, token, worker_id, since, request_id, tags, args, created_at)
             values ($1, $2, 't', 'default', 'running', 50, $3, $3, 1, 3, 3, 60, $4, $1, $3, '', '{}', '{}', $3)",
        )
        .bind(id)
        .bind(self.owner)
        .bind(self.clock.now())
        .bind(token)
        .execute(self.jobs.pool())
        .await
        .expect("a job");
        id
    }

    async fn attempt_file(&self, job: Uuid, token: i64) -> Uuid {
        let mut conn = self.jobs.pool().acquire().await.expect("a connection");
        let now = self.clock.now();
        let (id, key) =
            create_for_attempt(&mut conn, self.owner, job, token, "a", now, &self.clock).await.expect("created");
        self.write(&key).await;
        id
    }

    async fn make_whole(&self, attempts: &[(Uuid, i64, Vec<WrittenFile>)]) -> Result<(), Fail> {
        let mut transaction = self.jobs.pool().begin().await?;
        make_whole_for_attempts(&mut transaction, attempts, self.clock.now()).await?;
        Ok(transaction.commit().await?)
    }

    async fn state(&self, id: Uuid) -> Option<String> {
        sqlx::query_scalar("select state from jobs.file where id = $1")
            .bind(id)
            .fetch_optional(self.jobs.pool())
            .await
            .expect("a row or none")
    }

    async fn is_whole(&self, id: Uuid) -> bool {
        let mut conn = self.jobs.pool().acquire().await.expect("a connection");
        find_whole(&mut conn, self.owner, id).await.expect("an answer").is_some()
    }

    async fn sweep(&self) {
        sweep_files(&self.jobs.core, self.lead).await.expect("swept");
    }
}

fn written(id: Uuid) -> WrittenFile {
    WrittenFile { file_id: id.to_string(), content_type: "a/b".to_owned(), size_bytes: 4, sha256: "0".repeat(64) }
}

#[tokio::test]
async fn an_upload_that_stands_still_is_dropped_and_one_that_goes_on_is_kept() {
    let house = House::open().await;
    let (_, still) = house.upload().await;
    let (moving, moved) = house.upload().await;
    house.clock.advance(10 * MINUTE);
    let asked = ExtendFilesRequest { ticket: moving, names: Vec::new() };
    uploads::extend(&house.jobs.core, &asked).await.expect("extended");
    house.sweep().await;
    assert_eq!(house.state(still).await.as_deref(), Some("writing"), "its lease is not over");

    house.clock.advance(5 * MINUTE);
    house.sweep().await;
    assert_eq!(house.state(still).await, None);
    assert!(!house.object(still).exists());
    assert_eq!(house.state(moved).await.as_deref(), Some("writing"));
    assert!(house.object(moved).exists());
}

#[tokio::test]
async fn the_bytes_of_a_removed_file_leave_and_its_row_after_them() {
    let house = House::open().await;
    let (kept, gone) = (house.file().await, house.file().await);
    house.remove(gone).await;
    assert!(house.object(gone).exists(), "until the sweep comes by");
    house.sweep().await;
    assert!(!house.object(gone).exists() && house.object(kept).exists());
    assert_eq!(house.state(gone).await, None);
    assert!(house.is_whole(kept).await);
    house.sweep().await;
}

#[tokio::test]
async fn a_sweep_that_was_killed_between_bytes_and_row_is_finished_by_the_next() {
    let house = House::open().await;
    let file = house.file().await;
    house.remove(file).await;
    house.storage.remove(&storage_key(file)).await.expect("the bytes are gone");
    assert_eq!(house.state(file).await.as_deref(), Some("doomed"));
    house.sweep().await;
    assert_eq!(house.state(file).await, None);
}

#[tokio::test]
async fn bytes_that_cannot_be_removed_keep_their_row_and_hold_up_no_other() {
    let house = House::open().await;
    let (stuck, other) = (house.file().await, house.file().await);
    house.remove(stuck).await;
    house.remove(other).await;
    // A folder in the place of the object cannot be removed as one.
    std::fs::remove_file(house.object(stuck)).expect("the object");
    std::fs::create_dir(house.object(stuck)).expect("a folder");
    let fail = sweep_files(&house.jobs.core, house.lead).await.expect_err("one is stuck");
    assert_eq!(fail.code(), "storage_unavailable");
    assert_eq!(house.state(stuck).await.as_deref(), Some("doomed"));
    assert_eq!(house.state(other).await, None);

    std::fs::remove_dir(house.object(stuck)).expect("the folder");
    house.sweep().await;
    assert_eq!(house.state(stuck).await, None);
}

#[tokio::test]
async fn several_sweeps_at_once_do_what_one_does() {
    let house = House::open().await;
    let mut gone = Vec::new();
    for _ in 0..20 {
        gone.push(house.file().await);
    }
    for id in &gone {
        house.remove(*id).await;
    }
    let (core, lead) = (&house.jobs.core, house.lead);
    let (one, two, three) = tokio::join!(sweep_files(core, lead), sweep_files(core, lead), sweep_files(core, lead));
    one.and(two).and(three).expect("swept");
    for id in gone {
        assert_eq!(house.state(id).await, None);
        assert!(!house.object(id).exists());
    }
}

#[tokio::test]
async fn what_an_attempt_wrote_leaves_when_its_job_is_no_longer_live_under_its_token() {
    let house = House::open().await;
    // Each is written while its attempt counts: the service sweeps by itself too, and would take it before its bytes.
    let (job, gone) = (house.running_job(6).await, house.running_job(6).await);
    let (fenced, orphan) = (house.attempt_file(job, 6).await, house.attempt_file(gone, 6).await);
    for sql in ["update jobs.job set token = 7 where id = $1", "delete from jobs.job where id = $1"] {
        let id = if sql.starts_with("update") { job } else { gone };
        sqlx::query(sql).bind(id).execute(house.jobs.pool()).await.expect("the job's row");
    }
    let live = house.attempt_file(job, 7).await;
    house.clock.advance(60 * 24 * MINUTE);
    house.sweep().await;
    assert_eq!(house.state(live).await.as_deref(), Some("writing"), "however long its attempt takes");
    for id in [fenced, orphan] {
        assert_eq!(house.state(id).await, None);
        assert!(!house.object(id).exists());
    }
}

#[tokio::test]
async fn an_attempt_makes_whole_what_it_names_and_gives_up_the_rest() {
    let house = House::open().await;
    let (one, two) = (house.running_job(7).await, house.running_job(8).await);
    let (named, left) = (house.attempt_file(one, 7).await, house.attempt_file(one, 7).await);
    let other = house.attempt_file(two, 8).await;
    house.make_whole(&[(one, 7, vec![written(named)]), (two, 8, vec![written(other)])]).await.expect("whole");
    assert!(house.is_whole(named).await && house.is_whole(other).await);
    assert_eq!(house.state(left).await.as_deref(), Some("doomed"));
    assert_eq!(check_usage(&house.jobs.core, &untold()).await.expect("counted"), 0);
    let bytes: i64 = sqlx::query_scalar("select bytes from jobs.file_usage where owner_id = $1")
        .bind(house.owner)
        .fetch_one(house.jobs.pool())
        .await
        .expect("a count");
    assert_eq!(bytes, 8);
}

#[tokio::test]
async fn an_attempt_that_names_a_file_that_is_not_its_own_gets_none() {
    let house = House::open().await;
    let (one, two) = (house.running_job(7).await, house.running_job(8).await);
    let (own, foreign) = (house.attempt_file(one, 7).await, house.attempt_file(two, 8).await);
    let whole = house.file().await;
    for (files, code) in [
        (vec![written(own), written(foreign)], "files.not_of_attempt"),
        (vec![written(own), written(whole)], "files.not_of_attempt"),
        (vec![written(own), written(own)], "files.not_of_attempt"),
        (vec![written(own), written(house.clock.new_id())], "files.not_of_attempt"),
        (vec![WrittenFile { sha256: String::new(), ..written(own) }], "files.not_described"),
    ] {
        let fail = house.make_whole(&[(one, 7, files)]).await.expect_err(code);
        assert_eq!(fail.code(), code);
        assert_eq!(house.state(own).await.as_deref(), Some("writing"));
    }
    // Not even of one that ends in the same group.
    let both = [(one, 7, vec![written(foreign)]), (two, 8, vec![written(own)])];
    assert_eq!(house.make_whole(&both).await.expect_err("crossed").code(), "files.not_of_attempt");
    assert_eq!(
        house.make_whole(&[(one, 6, vec![written(own)])]).await.expect_err("fenced").code(),
        "files.not_of_attempt"
    );
    house.make_whole(&[(one, 7, vec![written(own)])]).await.expect("its own");
}

#[tokio::test]
async fn an_attempt_that_ends_without_a_result_leaves_nothing() {
    let house = House::open().await;
    let job = house.running_job(7).await;
    let (file, newer) = (house.attempt_file(job, 7).await, house.attempt_file(job, 8).await);
    let mut conn = house.jobs.pool().acquire().await.expect("a connection");
    doom_for_attempts(&mut conn, &[(job, 7), (job, 5)]).await.expect("doomed");
    drop(conn);
    assert_eq!(house.state(file).await.as_deref(), Some("doomed"));
    assert_eq!(house.state(newer).await.as_deref(), Some("writing"));
    sweep::remove_doomed(&house.jobs.core, house.lead).await.expect("removed");
    assert!(!house.object(file).exists() && house.object(newer).exists());
}

#[tokio::test]
async fn an_attempt_writes_a_thousand_files_and_not_one_more() {
    let house = House::open().await;
    let job = house.running_job(7).await;
    let mut conn = house.jobs.pool().acquire().await.expect("a connection");
    let now = house.clock.now();
    for _ in 0..1_000 {
        create_for_attempt(&mut conn, house.owner, job, 7, "a", now, &house.clock).await.expect("created");
    }
    let fail = create_for_attempt(&mut conn, house.owner, job, 7, "a", now, &house.clock).await.expect_err("1,001");
    assert_eq!(fail.code(), "files.too_many");
    create_for_attempt(&mut conn, house.owner, job, 8, "a", now, &house.clock).await.expect("another attempt's");
}

#[tokio::test]
async fn stored_bytes_that_no_row_names_leave_once_they_are_old() {
    let house = House::open().await;
    let file = house.file().await;
    let (_, writing) = house.upload().await;
    let lost = house.clock.new_id();
    house.write(&storage_key(lost)).await;
    house.write("somebody/elses").await;
    let staged = house.folder.path().join(format!("{writing}#1"));
    std::fs::write(&staged, b"fo").expect("what a killed writer leaves");

    sweep_storage(&house.jobs.core).await.expect("swept");
    assert!(house.object(lost).exists() && staged.exists(), "they might be on their way");

    house.clock.advance(20 * MINUTE);
    sweep_storage(&house.jobs.core).await.expect("swept");
    assert!(!house.object(lost).exists() && !staged.exists());
    assert!(house.object(file).exists() && house.object(writing).exists());
    assert!(house.folder.path().join("somebody/elses").exists(), "what is not ours stays");
}

#[tokio::test]
async fn a_count_that_is_not_the_sum_is_found() {
    let house = House::open().await;
    house.file().await;
    assert_eq!(check_usage(&house.jobs.core, &untold()).await.expect("counted"), 0);
    sqlx::query("update jobs.file_usage set bytes = bytes + 1").execute(house.jobs.pool()).await.expect("spoiled");
    assert_eq!(check_usage(&house.jobs.core, &untold()).await.expect("counted"), 1);
    sqlx::query("delete from jobs.file_usage").execute(house.jobs.pool()).await.expect("spoiled");
    assert_eq!(check_usage(&house.jobs.core, &untold()).await.expect("counted"), 1);
}
