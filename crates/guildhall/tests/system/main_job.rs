//! The main job: pictures in, models out.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read as _,
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    glb::Mesh,
    house::{House, memory_peak_bytes},
    is_long,
    person::{Event, Person},
    pictures,
    place::{Place, in_both_shapes},
    variable,
};

in_both_shapes! {
    pictures_become_watertight_models_while_one_watches
    bad_input_fails_alone_and_is_reported
}

/// Fewest progress events of a model before it ends.
const PROGRESS_EVENTS_MIN: usize = 5;

/// Most memory of everything but Postgres, with two slots.
const MEMORY_BYTES_MAX: u64 = 1 << 30;

/// For a whole batch on a slow machine.
const BATCH_WITHIN: Duration = Duration::from_secs(3600);

/// Pictures of the bounded form, and of the long one.
fn picture_count() -> usize {
    let said = variable("GUILDHALL_TEST_PICTURES").and_then(|text| text.parse().ok());
    said.unwrap_or(if is_long() { 200 } else { 12 })
}

async fn pictures_become_watertight_models_while_one_watches(place: Place) {
    let count = picture_count();
    let person = place.newcomer("ada").await;
    let (job_id, file_ids) = submit(&person, pictures::draw(count)).await;
    let batch_id = person.field(&job_id, "child_batch_id").await;
    let batch_id = batch_id.as_str().expect("an id");
    let events = person.events(&format!("/api/v1/batches/{batch_id}/events"), BATCH_WITHIN).await;
    let job = person.finished(&job_id, BATCH_WITHIN).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");

    let children = person.list(&format!("/api/v1/jobs?batch_id={batch_id}&task=generate_3d_model")).await;
    let bad: Vec<_> = children.iter().filter(|child| child["state"] != "succeeded").collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(children.len(), count);
    let made_of: BTreeSet<_> = children.iter().map(|child| child["args"]["file_id"].as_str().expect("an id")).collect();
    assert_eq!(made_of, file_ids.iter().map(String::as_str).collect());

    let models = place.dir().join("models");
    fs::create_dir(&models).expect("a folder");
    for (number, child) in children.iter().enumerate() {
        assert_progress_was_seen(&events, child["id"].as_str().expect("an id"));
        let result = &child["result"];
        let model = person.download(result["model_file_id"].as_str().expect("an id")).await;
        assert_eq!(model.len() as u64, result["size_bytes"].as_u64().expect("a size"));
        let mesh = Mesh::read(&model);
        mesh.assert_watertight();
        assert_eq!(mesh.triangles.len() as u64, result["triangles"].as_u64().expect("a count"));
        assert_eq!(mesh.positions.len() as u64, result["vertices"].as_u64().expect("a count"));
        let preview = person.download(result["preview_file_id"].as_str().expect("an id")).await;
        let preview = image::load_from_memory(&preview).expect("the preview is a picture");
        assert_eq!(preview.width().max(preview.height()), 512);
        fs::write(models.join(format!("{number:03}.glb")), model).expect("a file");
    }
    validate(&models);
    assert_finalized(&person, &job["result"], count, 0).await;
    // Where a process does it all, the bound is on that one; apart, each is bounded by its slots as here.
    if let Some(house) = place.house() {
        assert_memory_was_bounded(house);
    }
    place.close().await;
}

async fn bad_input_fails_alone_and_is_reported(place: Place) {
    let person = place.newcomer("ada").await;
    let stranger = place.newcomer("mallory").await;
    let foreign = stranger.upload(vec![("hers.png".to_owned(), pictures::small_png())]).await.remove(0);
    let missing = "01890000-0000-7000-8000-000000000000".to_owned();

    let mut files: Vec<_> = pictures::bad().into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
    let names: Vec<_> = files.iter().map(|(name, _)| name.clone()).collect();
    files.push(("good.png".to_owned(), pictures::small_png()));
    let mut ids = person.upload(files).await;
    let good = ids.pop().expect("one more than the bad ones");
    let mut expected: BTreeMap<String, (String, &str)> =
        ids.iter().cloned().zip(names.into_iter().map(|name| (name, "invalid_input"))).collect();
    expected.insert(missing.clone(), ("a missing file".to_owned(), "not_found"));
    expected.insert(foreign.clone(), ("another owner's file".to_owned(), "not_found"));

    let all: Vec<_> = expected.keys().chain([&good]).collect();
    let job_id = person.submit("process_batch", json!({ "file_ids": all })).await;
    let job = person.finished(&job_id, BATCH_WITHIN).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");

    let batch_id = job["child_batch_id"].as_str().expect("an id");
    let children = person.list(&format!("/api/v1/jobs?batch_id={batch_id}&task=generate_3d_model")).await;
    assert_eq!(children.len(), all.len());
    for child in &children {
        let file_id = child["args"]["file_id"].as_str().expect("an id");
        let Some((name, kind)) = expected.get(file_id) else {
            assert_eq!(child["state"], "succeeded", "{child:#}");
            continue;
        };
        assert_eq!(child["state"], "failed", "{name}: {child:#}");
        assert_eq!(child["error"]["kind"], *kind, "{name}: {child:#}");
        assert_eq!(child["error"]["retryable"], false, "{name} was tried again in vain");
        let message = child["error"]["message"].as_str().expect("a message");
        assert!(message.len() > 10, "{name}: `{message}` does not say what and why");
        println!("{name}: {message}");
    }
    let failures = assert_finalized(&person, &job["result"], 1, expected.len()).await;
    let reported: BTreeSet<_> = failures.iter().filter_map(|failure| failure["file_id"].as_str()).collect();
    assert_eq!(reported, expected.keys().map(String::as_str).collect());
    place.close().await;
}

/// Uploads pictures, a few a request, and submits the one job that makes models of them.
pub(crate) async fn submit(
    person: &Person,
    pictures: impl Iterator<Item = (String, Vec<u8>)>,
) -> (String, Vec<String>) {
    let mut file_ids = Vec::new();
    for picture in pictures {
        file_ids.extend(person.upload(vec![picture]).await);
    }
    (person.submit("process_batch", json!({ "file_ids": file_ids })).await, file_ids)
}

/// What the finalize left: counts, manifest, archive and contact sheet, all telling the same. Its failures.
pub(crate) async fn assert_finalized(person: &Person, result: &Value, succeeded: usize, failed: usize) -> Vec<Value> {
    assert_eq!(result["succeeded"], succeeded, "{result:#}");
    assert_eq!(result["failed"], failed, "{result:#}");
    assert_eq!(result["cancelled"], 0);
    assert_eq!(result["expired"], 0);
    let file = async |name: &str| person.download(result[name].as_str().expect("an id")).await;
    let manifest: Value = serde_json::from_slice(&file("manifest_file_id").await).expect("the manifest is JSON");
    assert!(manifest.is_object(), "{manifest:#}");
    let archive = std::io::Cursor::new(file("archive_file_id").await);
    let mut archive = zip::ZipArchive::new(archive).expect("the archive can be read");
    let mut models = 0;
    for at in 0..archive.len() {
        let mut entry = archive.by_index(at).expect("an entry");
        let name = entry.name().expect("a name in UTF-8").into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("the entry is whole");
        if name.ends_with(".glb") {
            let (number, _) = name.split_at(3);
            assert!(number.bytes().all(|b| b.is_ascii_digit()) && !name.contains(['/', '\\']), "{name}");
            Mesh::read(&bytes).assert_watertight();
            models += 1;
        }
    }
    assert_eq!(models, succeeded);
    image::load_from_memory(&file("contact_sheet_file_id").await).expect("the contact sheet is a picture");
    result["failures"].as_array().expect("a list").clone()
}

fn assert_progress_was_seen(events: &[Event], job_id: &str) {
    let of_job: Vec<_> = events.iter().filter(|event| event.data["job_id"] == job_id).collect();
    let end = of_job.iter().position(|event| event.event == "state" && event.data["state"] == "succeeded");
    let end = end.expect("the stream told the job's end");
    let progress: Vec<_> = of_job[..end].iter().filter(|event| event.event == "progress").collect();
    assert!(progress.len() >= PROGRESS_EVENTS_MIN, "{job_id} told {} steps: {progress:?}", progress.len());
    let percents: Vec<_> = progress.iter().map(|event| event.data["percent"].as_f64().expect("a number")).collect();
    assert!(percents.is_sorted(), "{job_id} went back: {percents:?}");
}

/// Of the binary and its slots; Postgres has its own.
fn assert_memory_was_bounded(house: &House) {
    let slots: u64 = house.slots().iter().map(|slot| slot.memory_peak_bytes()).sum();
    let peak = memory_peak_bytes(house.pid()) + slots;
    println!("peak memory of everything but Postgres: {} MiB", peak >> 20);
    assert!(peak < MEMORY_BYTES_MAX, "{} MiB", peak >> 20);
}

/// The Khronos validator finds neither error nor warning. It runs where `./dev test` has put it.
fn validate(models: &std::path::Path) {
    let Some(tools) = variable("GUILDHALL_GLTF_VALIDATOR") else {
        println!("GUILDHALL_GLTF_VALIDATOR is not set: the models were read, and not validated");
        return;
    };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tasks/tests/validate-gltf.mjs");
    let files = fs::read_dir(models).expect("a folder").map(|entry| entry.expect("an entry").path());
    let output = std::process::Command::new("node").arg(script).arg(tools).args(files).output().expect("node runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let report: Value = serde_json::from_str(line).expect("a line of JSON a file");
        assert!(report["errors"] == 0 && report["warnings"] == 0, "{report:#}");
    }
}
