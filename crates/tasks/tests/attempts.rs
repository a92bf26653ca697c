//! The built-in tasks as attempts: assigned over the stream, run by a real worker and its children, reported back.

use std::{
    collections::BTreeSet,
    io::{Cursor, Read as _},
};

use image::{GrayImage, ImageFormat, Luma};
use proto::worker::{Child, Failed, Succeeded, outcome::End};
use serde_json::{Value, json};
use worker::testing::{BATCH_ID, House, Shape, Stream};

const MISSING: &str = "01990000-0000-7000-8000-00000000dead";

fn house() -> House {
    house_of(400)
}

fn house_of(slot_mib_max: u64) -> House {
    let shape = Shape { slot_mib_max, ..Shape::default() };
    House::new(&shape, tasks::registry(true), env!("CARGO_BIN_EXE_tasks-test-slot"))
}

/// An id that tells nothing but its number.
fn id(number: u32) -> String {
    format!("01990000-0000-7000-8000-{number:012x}")
}

/// A small slope from dark to bright.
fn picture() -> Vec<u8> {
    let picture = GrayImage::from_fn(48, 32, |x, y| Luma([u8::try_from(x * 4 + y).unwrap_or(255)]));
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png).expect("a PNG");
    png.into_inner()
}

async fn run(jobs: &mut Stream, task: &str, args: Value) -> End {
    let attempt = jobs.assign(&id(900), task, args).await;
    jobs.outcome(&attempt).await
}

fn success(end: End) -> (Value, Succeeded) {
    match end {
        End::Succeeded(succeeded) => (serde_json::from_str(&succeeded.result_json).expect("JSON"), succeeded),
        other => panic!("it did not succeed: {other:?}"),
    }
}

fn failure(end: End) -> Failed {
    match end {
        End::Failed(failed) => failed,
        other => panic!("it did not fail: {other:?}"),
    }
}

async fn bytes_of(house: &House, file_id: &Value) -> Vec<u8> {
    let key = house.files.lock().rows[file_id.as_str().expect("an id")].storage_key.clone();
    let to = house.folder.path().join("read");
    house.storage.download_to(&key, &to).await.expect("the object");
    std::fs::read(to).expect("a file")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_picture_becomes_a_model_and_a_preview_and_tells_how_far_it_is() {
    let mut house = house();
    house.add_file(&id(1), "holiday.png", &picture()).await;
    let mut jobs = house.accept().await;
    let args = json!({ "file_id": id(1), "params": { "samples": 32 } });
    let (result, succeeded) = success(run(&mut jobs, "generate_3d_model", args).await);

    let glb = bytes_of(&house, &result["model_file_id"]).await;
    assert_eq!(&glb[..4], b"glTF");
    assert_eq!(result["size_bytes"], json!(glb.len()));
    assert!(result["triangles"].as_u64() > Some(1_000) && result["vertices"].as_u64() > Some(500), "{result}");
    assert!(result["seconds"].as_f64() >= Some(0.0));
    let preview = bytes_of(&house, &result["preview_file_id"]).await;
    assert_eq!(image::load_from_memory(&preview).expect("a PNG").width(), 512);
    let written: BTreeSet<_> = succeeded.files.iter().map(|file| file.content_type.as_str()).collect();
    assert_eq!(written, BTreeSet::from(["image/png", "model/gltf-binary"]));
    let names: BTreeSet<_> = house.files.lock().created.iter().map(|file| file.name.clone()).collect();
    assert_eq!(names, BTreeSet::from(["holiday-preview.png".to_owned(), "holiday.glb".to_owned()]));

    let stages: BTreeSet<_> = jobs.progress.iter().map(|update| update.stage.as_str()).collect();
    assert!(stages.len() >= 5, "{stages:?}");
    let percents: Vec<_> = jobs.progress.iter().map(|update| update.percent).collect();
    assert!(percents.is_sorted(), "{percents:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_file_and_a_file_that_is_no_picture_fail_for_good_and_say_why() {
    let mut house = house();
    house.add_file(&id(1), "notes.png", b"these are only words").await;
    house.add_file(&id(2), "empty.png", b"").await;
    let mut jobs = house.accept().await;
    let cases = [(MISSING, "not_found", ""), (&id(1), "invalid_input", "picture"), (&id(2), "invalid_input", "empty")];
    for (file_id, kind, word) in cases {
        let failed = failure(run(&mut jobs, "generate_3d_model", json!({ "file_id": file_id })).await);
        assert_eq!((failed.kind.as_str(), failed.retryable), (kind, false), "{}", failed.message);
        assert!(failed.message.contains(word) && failed.message.ends_with('.'), "{}", failed.message);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_fans_out_each_picture_once_in_pages_and_waits_for_it() {
    let mut house = house();
    let mut jobs = house.accept().await;
    let file_ids: Vec<_> = (0..600).map(id).collect();
    let args = json!({ "file_ids": file_ids, "params": { "depth_mm": 3.0 } });
    let End::Suspended(suspended) = run(&mut jobs, "process_batch", args).await else { panic!("it waits") };
    assert_eq!(suspended.batch_id, BATCH_ID);

    let files = house.files.lock();
    assert!(files.fan_outs.len() > 1 && files.fan_outs.iter().all(|page| page.finalize_task == "finalize_batch"));
    let children: Vec<_> = files.fan_outs.iter().flat_map(|page| &page.jobs).collect();
    assert_eq!(children.len(), 600);
    for (ordinal, child) in children.iter().enumerate() {
        let args: Value = serde_json::from_str(&child.args_json).expect("JSON");
        assert_eq!((child.ordinal as usize, child.task.as_str()), (ordinal, "generate_3d_model"));
        assert_eq!(
            (args["file_id"].as_str(), &args["params"]["depth_mm"]),
            (Some(file_ids[ordinal].as_str()), &json!(3.0))
        );
    }
}

/// A child that ended without a model.
fn without_model(ordinal: u32, state: &str, error: (&str, &str)) -> Child {
    Child {
        ordinal,
        job_id: id(100 + ordinal),
        state: state.to_owned(),
        args_json: json!({ "file_id": id(ordinal) }).to_string(),
        error_kind: error.0.to_owned(),
        error_message: error.1.to_owned(),
        ..Child::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finished_batch_leaves_an_archive_a_manifest_and_a_contact_sheet_of_everything() {
    let mut house = house();
    let mut jobs = house.accept().await;
    let mut children = Vec::new();
    for (ordinal, name) in [(0, "a/b.png"), (1, "Köln (2).png")] {
        house.add_file(&id(ordinal), name, &picture()).await;
        let args = json!({ "file_id": id(ordinal), "params": { "samples": 16 } });
        let (result, _) = success(run(&mut jobs, "generate_3d_model", args.clone()).await);
        let (args_json, result_json) = (args.to_string(), result.to_string());
        children.push(Child {
            state: "succeeded".to_owned(),
            result_json,
            args_json,
            ..without_model(ordinal, "", ("", ""))
        });
    }
    children.push(without_model(2, "failed", ("invalid_input", "The file is empty (0 bytes).")));
    children.push(without_model(3, "cancelled", ("", "")));
    children.push(without_model(4, "expired", ("", "")));
    // A model that its owner has removed since.
    let mut removed = children[0].clone();
    removed.ordinal = 5;
    removed.result_json = removed.result_json.replace(
        serde_json::from_str::<Value>(&removed.result_json).expect("JSON")["model_file_id"].as_str().expect("an id"),
        MISSING,
    );
    children.push(removed);
    house.files.lock().children = children;

    let finalize =
        jobs.assign_with(&id(901), "finalize_batch", json!({}), |assignment| assignment.finalize = true).await;
    let (result, _) = success(jobs.outcome(&finalize).await);
    let counts = ["succeeded", "failed", "cancelled", "expired"].map(|state| result[state].as_u64().unwrap_or(99));
    assert_eq!(counts, [3, 1, 1, 1]);
    assert_eq!(result["truncated"], json!(false));
    let kinds: Vec<_> = result["failures"].as_array().expect("a list").iter().map(|failure| &failure["kind"]).collect();
    assert_eq!(kinds, ["invalid_input", "cancelled", "expired", "not_found"]);
    assert_eq!(result["failures"][0]["file_id"], json!(id(2)));

    let mut zip = zip::ZipArchive::new(Cursor::new(bytes_of(&house, &result["archive_file_id"]).await)).expect("a zip");
    let manifest: tasks::manifest::Manifest =
        serde_json::from_slice(&bytes_of(&house, &result["manifest_file_id"]).await).expect("a manifest");
    let names: Vec<_> = manifest.models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["001-b.glb", "002-Köln-2.glb"]);
    assert_eq!(zip.len(), 2);
    for model in &manifest.models {
        let mut glb = Vec::new();
        zip.by_name(&model.name).expect("an entry").read_to_end(&mut glb).expect("its bytes");
        assert_eq!((&glb[..4], glb.len() as u64), (b"glTF".as_slice(), model.size_bytes));
        assert_eq!(model.sha256.len(), 64);
    }
    assert_eq!(manifest.failures.len(), 4);
    image::load_from_memory(&bytes_of(&house, &result["contact_sheet_file_id"]).await).expect("a PNG");
    assert_eq!(house.scratch_leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_of_failures_alone_still_ends_well_and_lists_the_first_hundred() {
    let mut house = house();
    let mut jobs = house.accept().await;
    let failed = |ordinal| without_model(ordinal, "failed", ("not_found", "There is no such file."));
    house.files.lock().children = (0..450).map(failed).collect();
    let finalize =
        jobs.assign_with(&id(901), "finalize_batch", json!({}), |assignment| assignment.finalize = true).await;
    let (result, _) = success(jobs.outcome(&finalize).await);
    assert_eq!((&result["failed"], &result["truncated"]), (&json!(450), &json!(true)));
    assert_eq!(result["failures"].as_array().map(Vec::len), Some(100));
    let zip = zip::ZipArchive::new(Cursor::new(bytes_of(&house, &result["archive_file_id"]).await)).expect("a zip");
    assert_eq!(zip.len(), 0);
    let manifest: tasks::manifest::Manifest =
        serde_json::from_slice(&bytes_of(&house, &result["manifest_file_id"]).await).expect("a manifest");
    assert_eq!(manifest.failures.len(), 450);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finalize_without_a_batch_is_refused() {
    let mut house = house();
    let mut jobs = house.accept().await;
    let failed = failure(run(&mut jobs, "finalize_batch", json!({})).await);
    assert_eq!((failed.kind.as_str(), failed.retryable), ("invalid_input", false));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstrations_do_what_they_say() {
    let mut house = house_of(64);
    let mut jobs = house.accept().await;
    let (echo, _) = success(run(&mut jobs, "demo_echo", json!({ "value": [1, null] })).await);
    assert_eq!(echo, json!({ "value": [1, null] }));
    success(run(&mut jobs, "demo_sleep", json!({ "seconds": 0.01 })).await);

    let args = json!({ "times": 1, "kind": "own_kind", "message": "As asked." });
    let failed = failure(run(&mut jobs, "demo_fail", args.clone()).await);
    assert_eq!((failed.kind.as_str(), failed.message.as_str(), failed.retryable), ("own_kind", "As asked.", true));
    let second = jobs.assign_with(&id(902), "demo_fail", args, |assignment| assignment.number = 2).await;
    success(jobs.outcome(&second).await);

    success(run(&mut jobs, "demo_spin", json!({ "seconds": 0.01 })).await);
    success(run(&mut jobs, "demo_hog", json!({ "mib": 8 })).await);
    let failed = failure(run(&mut jobs, "demo_hog", json!({ "mib": 512 })).await);
    assert_eq!(failed.kind, "memory_exceeded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sleeping_task_obeys_and_a_spinning_one_is_killed() {
    let mut house = house();
    let mut jobs = house.accept().await;
    for task in ["demo_sleep", "demo_spin"] {
        let attempt = jobs.assign(task, task, json!({ "seconds": 3_600 })).await;
        jobs.started(&attempt).await;
        jobs.stop(&attempt, "cancel").await;
        assert!(matches!(jobs.outcome(&attempt).await, End::Stopped(_)), "{task}");
    }
}

#[test]
fn the_schemas_admit_what_the_tasks_take_and_nothing_else() {
    let good = [
        ("demo_echo", json!({ "value": null })),
        ("demo_sleep", json!({ "seconds": 0.5 })),
        ("demo_fail", json!({ "times": 0 })),
        ("demo_hog", json!({ "mib": 1 })),
        ("process_batch", json!({ "file_ids": [id(1)], "provider": "relief", "params": { "invert": true } })),
        ("generate_3d_model", json!({ "file_id": id(1), "params": { "size_mm": 10 } })),
        ("finalize_batch", json!({})),
    ];
    let bad = [
        ("demo_echo", json!({})),
        ("demo_echo", json!({ "value": 1, "more": 2 })),
        ("demo_sleep", json!({ "seconds": -1 })),
        ("demo_spin", json!({ "seconds": "long" })),
        ("demo_fail", json!({ "times": 1, "kind": "Not A Word" })),
        ("demo_hog", json!({ "mib": 0 })),
        ("process_batch", json!({ "file_ids": [] })),
        ("process_batch", json!({ "file_ids": ["picture.png"] })),
        ("process_batch", json!({ "file_ids": vec![id(1); 10_001] })),
        ("generate_3d_model", json!({ "file_id": "../../etc/passwd" })),
        ("generate_3d_model", json!({ "file_id": id(1), "provider": "fal" })),
        ("generate_3d_model", json!({ "file_id": id(1), "params": { "samples": 4_096 } })),
        ("generate_3d_model", json!({ "file_id": id(1), "params": { "colour": "red" } })),
        ("finalize_batch", json!({ "batch_id": BATCH_ID })),
    ];
    let registry = tasks::registry(true);
    let is_valid = |task: &str, args: &Value| {
        let schema = registry.find(task).expect("the task").schema();
        jsonschema::draft202012::new(&schema).expect("a schema").is_valid(args)
    };
    for (task, args) in good {
        assert!(is_valid(task, &args), "{task} {args}");
    }
    for (task, args) in bad {
        assert!(!is_valid(task, &args), "{task} {args}");
    }
}
