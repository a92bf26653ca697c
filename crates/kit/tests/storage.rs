//! What every storage must do, done to each: a folder always, S3 when `GUILDHALL_TEST_S3_URL` names one
//! (`s3://bucket/prefix?endpoint=...`, with `GUILDHALL_TEST_S3_ACCESS_KEY` and `GUILDHALL_TEST_S3_SECRET_KEY`).

#![expect(clippy::unwrap_used, reason = "a test whose storage cannot be opened can only fail")]

use bytes::Bytes;
use chrono::{DateTime, Duration, Utc};
use futures::TryStreamExt as _;
use kit::{
    Clock, Kind, Secret,
    storage::{Storage, Swept},
};
use sha2::{Digest as _, Sha256};

/// A storage nobody else writes to, and what holds its folder.
struct Place {
    storage: Storage,
    _folder: Option<tempfile::TempDir>,
}

fn folder() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::open(&format!("file://{}", folder.path().display()), None, None).unwrap();
    Place { storage, _folder: Some(folder) }
}

#[expect(clippy::disallowed_methods, reason = "the tests' own variables are no settings")]
fn s3() -> Option<Place> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let url = variable("GUILDHALL_TEST_S3_URL")?;
    // Whoever came first has installed the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let access_key = Secret::new(variable("GUILDHALL_TEST_S3_ACCESS_KEY").unwrap_or_else(|| "test".into()));
    let secret_key = Secret::new(variable("GUILDHALL_TEST_S3_SECRET_KEY").unwrap_or_else(|| "test".into()));
    // A prefix of its own keeps one test from another's objects.
    let (place, query) = url.split_once('?').unwrap_or((&url, ""));
    let own = format!("{}/{}?{query}", place.trim_end_matches('/'), Clock::system().new_id());
    let storage = Storage::open(&own, Some(&access_key), Some(&secret_key)).unwrap();
    Some(Place { storage, _folder: None })
}

/// Makes a test of each promise for each storage.
macro_rules! promises {
    ($($name:ident)*) => {
        mod in_a_folder {
            $(#[tokio::test] async fn $name() { super::$name(super::folder().storage).await; })*
        }
        mod in_s3 {
            $(#[tokio::test] async fn $name() {
                if let Some(place) = super::s3() { super::$name(place.storage).await; }
            })*
        }
    };
}

promises! {
    what_was_finished_reads_back_whole_and_in_part
    sizes_around_the_edges_of_parts_are_kept
    an_object_is_not_there_before_it_is_finished_nor_after_it_is_aborted
    a_second_writer_replaces_the_first
    removing_twice_is_removing_once
    a_download_lands_in_a_file
    a_sweep_removes_what_nobody_knows_and_only_if_it_is_old
    a_key_that_is_no_key_is_refused
    it_answers
}

#[tokio::test]
async fn removing_an_object_in_a_folder_takes_what_killed_writers_left_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::open(&format!("file://{}", folder.path().display()), None, None).unwrap();
    // A kill is a writer that is neither finished nor dropped. The second of them finds the first one's name taken.
    for _ in 0..2 {
        let mut writer = storage.writer("killed").unwrap();
        // More than a part, so that some of it is on the disk.
        writer.write(sample(20 << 20)).await.unwrap();
        std::mem::forget(writer);
    }
    put(&storage, "killed", sample(1)).await;
    put(&storage, "kept", sample(1)).await;
    let lying = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(lying(), ["kept", "killed", "killed#1", "killed#2"]);
    storage.remove("killed").await.unwrap();
    assert_eq!(lying(), ["kept"]);
}

fn sample(length: usize) -> Bytes {
    (0..length).map(|at| (at % 251) as u8).collect::<Vec<_>>().into()
}

async fn put(storage: &Storage, key: &str, bytes: Bytes) {
    let mut writer = storage.writer(key).unwrap();
    writer.write(bytes).await.unwrap();
    writer.finish().await.unwrap();
}

async fn read(storage: &Storage, key: &str, range: Option<std::ops::Range<u64>>) -> Vec<u8> {
    let stream = storage.read(key, range).await.unwrap();
    stream
        .try_fold(Vec::new(), |mut all, chunk| async move {
            all.extend_from_slice(&chunk);
            Ok(all)
        })
        .await
        .unwrap()
}

async fn is_there(storage: &Storage, key: &str) -> bool {
    match storage.read(key, None).await {
        Ok(_) => true,
        Err(fail) => {
            assert_eq!((fail.kind(), fail.code()), (Kind::NotFound, "storage.object_not_found"));
            false
        }
    }
}

async fn what_was_finished_reads_back_whole_and_in_part(storage: Storage) {
    let bytes = sample(12_345_678);
    let mut writer = storage.writer("a/b/large").unwrap();
    for chunk in bytes.chunks(65_521) {
        writer.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    assert_eq!(writer.size(), 12_345_678);
    let written = writer.finish().await.unwrap();
    assert_eq!(written.size, 12_345_678);
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(written.sha256, digest);
    assert!(read(&storage, "a/b/large", None).await == bytes);
    // Not `0..1`: the S3 server of `./dev test` takes an end of 0 for none and answers with everything, which the client
    // notices and refuses. One byte elsewhere says the same of ours.
    for range in [0..2, 1..2, 5_242_879..5_242_881, 12_345_677..12_345_678] {
        let (from, to) = (range.start as usize, range.end as usize);
        assert_eq!(read(&storage, "a/b/large", Some(range)).await, bytes[from..to]);
    }
}

async fn sizes_around_the_edges_of_parts_are_kept(storage: Storage) {
    const MIB: usize = 1024 * 1024;
    for size in [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 5 * MIB, 5 * MIB + 1] {
        put(&storage, "edge", sample(size)).await;
        assert!(read(&storage, "edge", None).await == sample(size), "{size} bytes");
    }
}

async fn an_object_is_not_there_before_it_is_finished_nor_after_it_is_aborted(storage: Storage) {
    let mut writer = storage.writer("half").unwrap();
    writer.write(sample(11_000_000)).await.unwrap();
    assert!(!is_there(&storage, "half").await);
    writer.abort().await;
    assert!(!is_there(&storage, "half").await);
    storage.writer("never").unwrap().abort().await;
    assert!(!is_there(&storage, "never").await);
}

async fn a_second_writer_replaces_the_first(storage: Storage) {
    put(&storage, "twice", Bytes::from_static(b"first")).await;
    put(&storage, "twice", Bytes::from_static(b"second")).await;
    assert_eq!(read(&storage, "twice", None).await, b"second");
}

async fn removing_twice_is_removing_once(storage: Storage) {
    put(&storage, "gone/soon", Bytes::from_static(b"x")).await;
    storage.remove("gone/soon").await.unwrap();
    assert!(!is_there(&storage, "gone/soon").await);
    storage.remove("gone/soon").await.unwrap();
}

async fn a_download_lands_in_a_file(storage: Storage) {
    put(&storage, "down", sample(3_000_000)).await;
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("copy");
    assert_eq!(storage.download_to("down", &to).await.unwrap(), 3_000_000);
    assert!(std::fs::read(&to).unwrap() == sample(3_000_000));
    let fail = storage.download_to("absent", &to).await.unwrap_err();
    assert_eq!(fail.code(), "storage.object_not_found");
}

fn hours_from_now(hours: i64) -> DateTime<Utc> {
    Clock::system().now() + Duration::hours(hours)
}

async fn a_sweep_removes_what_nobody_knows_and_only_if_it_is_old(storage: Storage) {
    for key in ["files/known", "files/unknown", "other/unknown"] {
        put(&storage, key, Bytes::from_static(b"x")).await;
    }
    let is_known = async |keys: Vec<String>| Ok(keys.iter().map(|key| key == "files/known").collect());
    // Whatever was written since belongs to someone who has not said so yet.
    assert_eq!(storage.sweep(hours_from_now(-1), is_known).await.unwrap(), Swept::default());
    let swept = storage.sweep(hours_from_now(1), is_known).await.unwrap();
    assert_eq!(swept, Swept { objects: 2, unfinished: 0 });
    assert!(is_there(&storage, "files/known").await);
    assert!(!is_there(&storage, "files/unknown").await);
    assert!(!is_there(&storage, "other/unknown").await);
}

async fn a_key_that_is_no_key_is_refused(storage: Storage) {
    for key in ["", "/", "a//b", "../up", "a/../b", "name#7"] {
        assert!(storage.writer(key).is_err(), "{key:?}");
    }
}

async fn it_answers(storage: Storage) {
    storage.check().await.unwrap();
    put(&storage, "one", Bytes::from_static(b"x")).await;
    storage.check().await.unwrap();
}

#[tokio::test]
async fn a_killed_writers_leavings_are_swept_once_they_are_old() {
    let place = folder();
    let mut writer = place.storage.writer("files/half").unwrap();
    writer.write(sample(3_000_000)).await.unwrap();
    // As a kill does, nothing of the writer runs any more.
    std::mem::forget(writer);
    let nobody = async |keys: Vec<String>| Ok(vec![false; keys.len()]);
    assert_eq!(place.storage.sweep(hours_from_now(-1), nobody).await.unwrap(), Swept::default());
    let swept = place.storage.sweep(hours_from_now(1), nobody).await.unwrap();
    assert_eq!(swept, Swept { objects: 0, unfinished: 1 });
    assert_eq!(place.storage.sweep(hours_from_now(1), nobody).await.unwrap(), Swept::default());
}

#[tokio::test]
async fn a_writer_that_is_dropped_leaves_nothing_in_its_folder() {
    let place = folder();
    let mut writer = place.storage.writer("half").unwrap();
    writer.write(sample(3_000_000)).await.unwrap();
    drop(writer);
    let folder = place._folder.as_ref().unwrap().path();
    // A thread of its own does it.
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::fs::read_dir(folder).unwrap().count() > 0 {
        assert!(tokio::time::Instant::now() < until, "something is left");
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_url_that_cannot_work_says_why() {
    let open = |url: &str| Storage::open(url, None, None).unwrap_err();
    for url in ["nonsense", "file:relative", "ftp://x", "s3:///prefix", "s3://bucket"] {
        let fail = open(url);
        assert_eq!(fail.code(), "config.storage_url", "{url}");
    }
    let key = Secret::new("k".to_owned());
    let fail = Storage::open("s3://bucket?colour=red", Some(&key), Some(&key)).unwrap_err();
    assert!(fail.message().contains("colour"), "{fail}");
}

#[test]
fn a_storage_shows_no_credentials() {
    let key = Secret::new("hush".to_owned());
    let _ = rustls::crypto::ring::default_provider().install_default();
    let storage = Storage::open("s3://bucket/p?endpoint=http://127.0.0.1:1", Some(&key), Some(&key)).unwrap();
    assert!(!format!("{storage:?}").contains("hush"));
}
