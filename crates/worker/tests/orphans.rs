//! A slot's child ends with its worker, however the worker ends and whatever the child is at.

use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{ChildStdin, ChildStdout, Command},
};

/// Nothing here takes long; this ends a test that would hang.
const PATIENCE: Duration = Duration::from_secs(30);
const SLOT: &str = env!("CARGO_BIN_EXE_worker-test-slot");

/// Sets a child to burn a core, and waits until it does.
async fn set_spinning(to: &mut ChildStdin, from: &mut ChildStdout) {
    let facts = json!({ "job_id": "a", "number": 1, "owner_id": "owner", "is_finalize": false });
    send(to, &json!({ "begin": { "bytes_max": 64 * 1024 * 1024 } })).await;
    send(to, &json!({ "run": { "task": "spin", "args": {}, "facts": facts, "scratch": "/" } })).await;
    let length = from.read_u32().await.expect("a frame");
    let mut frame = vec![0; length as usize];
    from.read_exact(&mut frame).await.expect("the frame's bytes");
    let told: Value = serde_json::from_slice(&frame).expect("JSON");
    assert_eq!(told["told"]["progress"]["stage"], json!("spinning"));
}

async fn send(to: &mut ChildStdin, frame: &Value) {
    let frame = frame.to_string();
    to.write_u32(u32::try_from(frame.len()).expect("it is short")).await.expect("an open pipe");
    to.write_all(frame.as_bytes()).await.expect("an open pipe");
    to.flush().await.expect("an open pipe");
}

#[tokio::test]
async fn a_spinning_child_ends_when_its_worker_closes_the_pipe() {
    let mut child =
        Command::new(SLOT).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("a child");
    let (mut to, mut from) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    set_spinning(&mut to, &mut from).await;
    drop(to);
    let ended = tokio::time::timeout(PATIENCE, child.wait()).await;
    assert!(ended.expect("it ends as well").expect("its end").success());
}

#[tokio::test]
async fn a_spinning_child_ends_when_its_worker_is_killed_even_while_the_pipe_stays_open() {
    // The shell stands for the worker. The pipe is ours, so that its death does not close it.
    let mut shell = Command::new("sh")
        .args(["-c", r#"exec 3<&0; "$0" <&3 & wait"#, SLOT])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a shell");
    let (mut to, mut from) = (shell.stdin.take().expect("a pipe"), shell.stdout.take().expect("a pipe"));
    set_spinning(&mut to, &mut from).await;
    shell.kill().await.expect("its death");
    // The child held the other end of this pipe, so its end is the child's.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, from.read_to_end(&mut rest)).await;
    assert_eq!(ended.expect("the child dies as well").expect("the end"), 0);
}

#[tokio::test]
async fn a_child_that_no_worker_started_says_so_and_fails() {
    let output = Command::new(SLOT).stdin(Stdio::null()).output().await.expect("it runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("started by a worker"), "{output:?}");
}
