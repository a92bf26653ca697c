//! The real binary, `guildhall up`, on a database of the ground and with a person who is signed in. It is asked to stop
//! when its benchmark is over, and killed where the benchmark has failed.

use std::{fs, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::{Fault, ground::Ground};

const READY_WITHIN: Duration = Duration::from_secs(120);
const READY_POLL: Duration = Duration::from_millis(20);
const STOP_WITHIN: Duration = Duration::from_secs(90);
const EMAIL: &str = "admin@guildhall.localhost";
const PASSWORD: &str = "measured but never guessed";

/// An open house and its administrator.
#[derive(Debug)]
pub(crate) struct House {
    child: Child,
    pid: u32,
    pub(crate) http: String,
    client: reqwest::Client,
    token: String,
}

impl House {
    /// Opens one on the database of `url`, with `settings` beside the defaults.
    ///
    /// # Errors
    /// It does not open; the end of its log is in the message.
    pub(crate) async fn open(ground: &Ground, url: &str, settings: &[(&str, String)]) -> Result<Self, Fault> {
        let data_dir = ground.empty_folder("house")?;
        let log = ground.folder().join("house.log");
        let mut command = Command::new(&ground.guildhall);
        forget_settings(&mut command);
        command
            .args(["up", "--no-sample"])
            .current_dir(ground.folder())
            .env("GUILDHALL_DATABASE_URL", url)
            .env("GUILDHALL_DATA_DIR", &data_dir)
            .env("GUILDHALL_HTTP_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_OPS_LISTEN", "127.0.0.1:0")
            .env("GUILDHALL_ADMIN_EMAIL", EMAIL)
            .env("GUILDHALL_ADMIN_PASSWORD", PASSWORD)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .process_group(0)
            .kill_on_drop(true);
        for (name, value) in settings {
            command.env(format!("GUILDHALL_{}", name.to_uppercase()), value);
        }
        let mut child = command.spawn()?;
        let pid = child.id().ok_or("the house has ended at once")?;
        let told = data_dir.join("ready.json");
        let ready = tokio::select! {
            ready = tokio::time::timeout(READY_WITHIN, ready(&told)) => ready.ok(),
            _ = child.wait() => None,
        };
        let Some(ready) = ready else {
            let said = fs::read_to_string(&log)?;
            let end: Vec<&str> = said.lines().rev().take(20).collect();
            return Err(
                format!("the house did not open:\n{}", end.into_iter().rev().collect::<Vec<_>>().join("\n")).into()
            );
        };
        let http = ready["http"].as_str().ok_or("ready.json names no URL")?.to_owned();
        let client = reqwest::Client::builder().timeout(Duration::from_secs(600)).build()?;
        let mut house = Self { child, pid, http, client, token: String::new() };
        house.sign_in().await?;
        Ok(house)
    }

    /// Takes a new access token: one is good for five minutes.
    ///
    /// # Errors
    /// As the gateway.
    pub(crate) async fn sign_in(&mut self) -> Result<(), Fault> {
        let body = json!({ "email": EMAIL, "password": PASSWORD });
        let request = self.client.post(format!("{}/api/v1/auth/login", self.http)).json(&body);
        let answer = answered(request).await?;
        self.token = answer["access_token"].as_str().ok_or("the login gave no token")?.to_owned();
        Ok(())
    }

    /// An access token of the administrator's.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// A request that shows it.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.http)).bearer_auth(&self.token)
    }

    /// # Errors
    /// As the gateway, for whatever is not a success.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Fault> {
        answered(self.request(Method::GET, path)).await
    }

    /// # Errors
    /// As the gateway, for whatever is not a success.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Fault> {
        answered(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Asks it to stop, and waits until it has.
    ///
    /// # Errors
    /// It does not, or not well.
    pub(crate) async fn close(mut self) -> Result<(), Fault> {
        kill(Pid::from_raw(self.pid.try_into()?), Signal::SIGTERM)?;
        let status = tokio::time::timeout(STOP_WITHIN, self.child.wait())
            .await
            .map_err(|_| format!("the house did not stop within {} s", STOP_WITHIN.as_secs()))??;
        if status.success() { Ok(()) } else { Err(format!("the house ended with {status}").into()) }
    }
}

/// The JSON of a successful answer.
///
/// # Errors
/// Any other status, with the body.
pub(crate) async fn answered(request: RequestBuilder) -> Result<Value, Fault> {
    let response = request.send().await?;
    let status = response.status();
    let body = response.text().await?;
    if !status.is_success() {
        return Err(format!("the gateway answered {status}: {body}").into());
    }
    Ok(serde_json::from_str(&body)?)
}

/// Measures the defaults, whatever the shell that started us has set.
#[expect(clippy::disallowed_methods, reason = "they are not read but kept from the one that would read them")]
fn forget_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        // By this one `./dev` finds what it has to end.
        if name.to_string_lossy().starts_with("GUILDHALL_") && name != "GUILDHALL_DEV_RUN" {
            command.env_remove(name);
        }
    }
}

/// What the house says of itself once it is open. The file is put there whole.
async fn ready(path: &std::path::Path) -> Value {
    loop {
        if let Some(ready) = fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return ready;
        }
        tokio::time::sleep(READY_POLL).await;
    }
}
