//! Starting, stopping, and being asked wrongly.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    glb::Mesh,
    house::House,
    person::Person,
    wait::{SOON, until},
};

/// For a dozen small pictures on a slow machine.
const SAMPLE_WITHIN: Duration = Duration::from_secs(300);

#[tokio::test(flavor = "multi_thread")]
async fn an_open_house_says_where_it_is_and_a_closed_one_says_nothing() {
    let house = House::open().await;
    let ready = house.ready().clone();
    assert!(ready.grpc.is_empty(), "no gRPC port is opened unless asked for");
    assert!(ready.http.starts_with("http://127.0.0.1:") && ready.ops.starts_with("http://127.0.0.1:"), "{ready:?}");
    let said = house.said();
    for word in [&ready.http, &ready.ops, "admin@guildhall.localhost", &house.data_dir().display().to_string()] {
        assert!(said.contains(word), "the banner does not tell {word}:\n{said}");
    }
    let stranger = Person::stranger(&ready.http);
    stranger.get("/livez").await.expect(200);
    stranger.get("/readyz").await.expect(200);
    let inside = Person::stranger(&ready.ops);
    let checks = inside.get("/readyz").await.expect(200);
    assert_eq!(checks["ready"], true, "{checks:#}");
    let metrics = inside.request(reqwest::Method::GET, "/metrics").await.send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    assert!(metrics.contains("guildhall_db_pool_connections{"), "{metrics}");
    // The inside is not told at the public door.
    assert_eq!(stranger.get("/metrics").await.status.as_u16(), 404);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_again_and_says_how_long_it_took() {
    let mut house = House::open().await;
    let person = house.newcomer("ada").await;
    let file_id = person.upload(vec![("hello.txt".to_owned(), b"hello".to_vec())]).await.remove(0);
    let job_id = person.submit("demo_echo", json!({ "value": "hello" })).await;
    person.finished(&job_id, SOON).await;
    let password = fs::read_to_string(house.data_dir().join("keys/administrator")).expect("it is kept");
    assert!(house.said().contains(password.trim()), "the first start shows the password");

    house.signal(Signal::SIGTERM);
    assert_eq!(house.ended().await.code(), Some(0), "{}", house.log());
    let started = Instant::now();
    house.reopen().await;
    println!("ready again after {:.2} s", started.elapsed().as_secs_f64());
    assert!(!house.said().contains(password.trim()), "a later start does not show the password");
    let person = person.at(&house.ready().http).await;
    assert_eq!(person.download(&file_id).await, b"hello");
    assert_eq!(person.job(&job_id).await["state"], "succeeded");
    house.administrator().await.get("/api/v1/workers").await.expect(200);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_start_makes_models_of_the_sample_and_says_where_they_are_and_a_second_does_not() {
    let mut house = House::closed(&[]);
    house.open_by(&["up"]).await;
    until("the sample", SAMPLE_WITHIN, async || house.said().contains("batch submit pictures/*").then_some(())).await;
    let sample = house.data_dir().join("sample");
    let said = house.said();
    assert!(said.contains(&sample.join("contact-sheet.png").display().to_string()), "{said}");
    let names = fs::read_dir(&sample).expect("the sample").map(|entry| entry.expect("an entry").path());
    let models: Vec<_> = names.filter(|path| path.extension().is_some_and(|ending| ending == "glb")).collect();
    assert_eq!(models.len(), tasks::samples::draw().count());
    for model in models {
        Mesh::read(&fs::read(model).expect("a model")).assert_watertight();
    }
    house.signal(Signal::SIGTERM);
    assert_eq!(house.ended().await.code(), Some(0), "{}", house.log());
    house.open_by(&["up"]).await;
    let administrator = house.administrator().await;
    assert_eq!(administrator.list("/api/v1/batches").await.len(), 1, "the sample was made once more");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_up_on_the_same_directory_is_refused_and_harms_nothing() {
    let house = House::open().await;
    let second = house.command(&["up", "--no-sample"]).stderr(Stdio::piped()).output().await.expect("it starts");
    assert_eq!(second.status.code(), Some(1));
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains(&format!("in use by the process {}", house.pid())), "{said}");
    assert!(said.contains("GUILDHALL_DATA_DIR"), "{said}");
    assert!(house.data_dir().join("ready.json").exists(), "the refused one took away the first one's ready.json");
    house.newcomer("ada").await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_roots_alone_will_do() {
    let mut house = House::closed(&[]);
    fs::create_dir(house.data_dir()).expect("a directory");
    for folder in [house.dir(), &house.data_dir()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).expect("it is ours");
    }
    house.reopen().await;
    house.newcomer("ada").await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_job_is_given_back_by_a_stop_and_ends_after_the_restart() {
    let mut house = House::open_with(&[("worker_drain_s", "1")]).await;
    let person = house.newcomer("ada").await;
    let job_id = person.submit("demo_sleep", json!({ "seconds": 5 })).await;
    until("the job to run", SOON, async || (person.job(&job_id).await["state"] == "running").then_some(())).await;
    house.signal(Signal::SIGINT);
    assert_eq!(house.ended().await.code(), Some(0), "{}", house.log());
    house.reopen().await;
    let person = person.at(&house.ready().http).await;
    let job = person.finished(&job_id, SOON).await;
    assert_eq!(job["state"], "succeeded", "{job:#}");
    let attempts = person.list(&format!("/api/v1/jobs/{job_id}/attempts")).await;
    assert!(attempts.iter().any(|attempt| attempt["outcome"] == "interrupted"), "{attempts:#?}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_at_a_terminal_lets_what_runs_end_first() {
    let mut house = House::open().await;
    let person = house.newcomer("ada").await;
    let job_id = person.submit("demo_spin", json!({ "seconds": 3 })).await;
    until("a slot to spin", SOON, async || (!house.slots().is_empty()).then_some(())).await;
    house.ctrl_c();
    assert_eq!(house.ended().await.code(), Some(0), "{}", house.log());
    house.reopen().await;
    let job = person.at(&house.ready().http).await.finished(&job_id, SOON).await;
    assert_eq!((&job["state"], &job["attempt"]), (&json!("succeeded"), &json!(1)), "{job:#}");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_leaves_nothing_running() {
    let mut house = House::open().await;
    let person = house.newcomer("ada").await;
    let job_id = person.submit("demo_sleep", json!({ "seconds": 300 })).await;
    until("the job to run", SOON, async || (person.job(&job_id).await["state"] == "running").then_some(())).await;
    house.signal(Signal::SIGINT);
    until("the drain", SOON, async || house.said().contains("Stopping").then_some(())).await;
    house.signal(Signal::SIGINT);
    assert_eq!(house.ended().await.code(), Some(130), "{}", house.log());
    assert!(!house.data_dir().join("ready.json").exists());
}

#[tokio::test]
async fn every_configuration_fault_is_told_at_once_with_the_exit_code_64() {
    let faults = [("http_listen", "here"), ("lease_s", "long"), ("worker_profile", "none"), ("colour", "red")];
    let house = House::closed(&faults);
    for command in ["up", "check-config", "migrate", "doctor"] {
        let output = house.command(&[command]).stderr(Stdio::piped()).output().await.expect("it starts");
        assert_eq!(output.status.code(), Some(64), "{command}");
        let said = String::from_utf8_lossy(&output.stderr);
        for (name, _) in faults {
            assert!(said.to_lowercase().contains(name), "{command} does not tell of {name}: {said}");
        }
    }
    assert!(!house.data_dir().exists(), "something was begun");
}

#[tokio::test]
async fn a_good_configuration_is_shown_with_its_places_and_without_its_secrets() {
    let mut house = House::closed(&[("admin_password", "correct horse battery staple")]);
    fs::write(house.dir().join("guildhall.toml"), "file_bytes_max = '1GiB'\n").expect("a file");
    house.set("lease_s", "20");
    let output = house.command(&["check-config"]).output().await.expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", house.log());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(!said.contains("staple"), "{said}");
    let shown = |name: &str| said.lines().find(|line| line.trim_start().starts_with(name)).unwrap_or_default();
    assert!(shown("lease_s ").contains("20  GUILDHALL_LEASE_S"), "{said}");
    assert!(shown("file_bytes_max ").contains("1GiB  file_bytes_max in guildhall.toml"), "{said}");
    assert!(shown("admin_password ").contains("***"), "{said}");
    assert!(shown("owner_bytes_max ").ends_with("default"), "{said}");
}

#[tokio::test]
async fn every_default_that_the_default_file_shows_can_be_written_down() {
    let house = House::closed(&[]);
    let output = house.command(&["check-config", "--print-defaults"]).output().await.expect("it starts");
    let defaults = String::from_utf8(output.stdout).expect("UTF-8");
    let settings = defaults.lines().filter_map(|line| line.strip_prefix('#').filter(|line| line.contains(" = \"")));
    let file: String = settings.flat_map(|line| [line, "\n"]).collect();
    assert!(file.lines().count() > 30, "{file}");
    fs::write(house.dir().join("guildhall.toml"), file).expect("a file");
    let output = house.command(&["check-config"]).output().await.expect("it starts");
    assert_eq!(output.status.code(), Some(0), "{}", house.log());
}

#[tokio::test]
async fn doctor_finds_everything_well_and_migrate_wants_to_be_told_which_database() {
    let house = House::closed(&[]);
    let ended = async |command| {
        let output = house.command(&[command]).output().await.expect("it starts");
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        (output.status.code(), said + &house.log())
    };
    let (code, said) = ended("doctor").await;
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = ended("migrate").await;
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("database_url must be said for `migrate`"), "{said}");
}

#[tokio::test]
async fn wrong_usage_ends_with_64_and_help_with_0() {
    let house = House::closed(&[]);
    for (arguments, code) in
        [(&["dance"][..], 64), (&[], 64), (&["up", "--fast"], 64), (&["--help"], 0), (&["--version"], 0)]
    {
        let output = house.command(arguments).output().await.expect("it starts");
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
    }
}
