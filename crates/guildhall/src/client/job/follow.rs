//! Follows one job: its events, and the job itself where events say too little.

use std::time::Duration;

use super::{Job, is_final};
use crate::client::{
    api::{Api, TRIES_SMALL, patiently},
    error::Error,
    events::{Event, Events, Heard},
};

/// After this long without an event the job itself is asked: why something waits is a field of it, and no event.
const LOOK_AFTER: Duration = Duration::from_secs(5);

/// What [`follow`] has to tell on the way.
pub(in crate::client) enum Told<'a> {
    Event(&'a Event),
    Job(&'a Job),
    Broken,
}

/// Follows a job until `until` holds of it, or to its end. Gives the job as it is then.
///
/// # Errors
/// Those of the requests, after some minutes of trying when the server is out of reach.
pub(in crate::client) async fn follow(
    api: &Api,
    id: &str,
    until: impl Fn(&Job) -> bool,
    mut told: impl FnMut(Told<'_>),
) -> Result<Job, Error> {
    let look = async || patiently(TRIES_SMALL, async || api.get::<Job>(&["jobs", id], &[]).await).await;
    let mut events = Events::of(api, "jobs", id);
    loop {
        let heard = tokio::time::timeout(LOOK_AFTER, events.next()).await;
        let has_passed = heard.is_err();
        let is_news = match heard.unwrap_or(Ok(Heard::Broken))? {
            Heard::End => return look().await,
            Heard::Broken => {
                if !has_passed {
                    told(Told::Broken);
                }
                has_passed
            }
            Heard::Event(event) => {
                told(Told::Event(&event));
                matches!(event.event.as_str(), "state" | "reset")
            }
        };
        if is_news {
            let job = look().await?;
            told(Told::Job(&job));
            if until(&job) || (has_passed && is_final(&job.state)) {
                return Ok(job);
            }
        }
    }
}
