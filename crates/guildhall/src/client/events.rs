//! A live stream of server-sent events, followed to its end. When the connection breaks or falls silent it is opened
//! again from the last event seen, so that whoever listens hears each event once and in order.

use std::{pin::Pin, time::Duration};

use bytes::Bytes;
use eventsource_stream::{EventStream, Eventsource as _};
use futures::{Stream, StreamExt as _, stream};
use reqwest::header::ACCEPT;
use serde::Serialize;
use serde_json::Value;

use super::{
    api::{Api, TRIES_SMALL, backoff},
    error::Error,
};

/// The server sends a comment every 15 s; after three missed ones the connection is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(50);

/// What a stream has to tell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Heard {
    Event(Event),
    /// The connection broke; it is being opened again.
    Broken,
    /// The last event has been told.
    End,
}

/// One event of the contract's live streams.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Event {
    /// Its offset, which `Last-Event-ID` takes back.
    pub(super) id: String,
    /// `state`, `progress`, `log`, `batch` or `reset`.
    pub(super) event: String,
    pub(super) data: Value,
}

type Chunks = Pin<Box<dyn Stream<Item = Result<Bytes, Silence>> + Send>>;

/// Why a connection is given up; the person learns only that it is being opened again.
#[derive(Debug)]
struct Silence;

/// The events of one job or batch.
pub(super) struct Events<'a> {
    api: &'a Api,
    path: [&'a str; 3],
    connection: Option<EventStream<Chunks>>,
    last_id: String,
    /// Times it was opened since the last event.
    tries: u32,
}

impl<'a> Events<'a> {
    /// The events of `noun` (`jobs` or `batches`) `id`, from the first that is kept.
    pub(super) fn of(api: &'a Api, noun: &'a str, id: &'a str) -> Self {
        Self { api, path: [noun, id, "events"], connection: None, last_id: String::new(), tries: 0 }
    }

    /// What comes next. May be dropped and called again: nothing is lost by it.
    ///
    /// # Errors
    /// [`Error::Refused`] when the stream may not be had (404 for somebody else's), and whatever the connection failed
    /// with when it could not be opened for about 3 minutes.
    pub(super) async fn next(&mut self) -> Result<Heard, Error> {
        loop {
            let Some(connection) = &mut self.connection else {
                self.connect().await?;
                continue;
            };
            let Some(Ok(event)) = connection.next().await else {
                self.connection = None;
                return Ok(Heard::Broken);
            };
            self.tries = 0;
            if event.event == "end" {
                return Ok(Heard::End);
            }
            if !event.id.is_empty() {
                self.last_id.clone_from(&event.id);
            }
            // Data that is no JSON can only come from a later version; its name alone may still mean something.
            let data = serde_json::from_str(&event.data).unwrap_or(Value::Null);
            return Ok(Heard::Event(Event { id: event.id, event: event.event, data }));
        }
    }

    async fn connect(&mut self) -> Result<(), Error> {
        loop {
            if self.tries > 0 {
                tokio::time::sleep(backoff(self.tries - 1)).await;
            }
            self.tries += 1;
            let url = self.api.url(&self.path, &[]);
            let opened = self.api.send(|http| {
                let request = http.get(url.clone()).header(ACCEPT, "text/event-stream");
                if self.last_id.is_empty() { request } else { request.header("last-event-id", &self.last_id) }
            });
            match opened.await {
                Ok(response) => {
                    self.connection = Some(until_silent(response.bytes_stream().boxed()).eventsource());
                    return Ok(());
                }
                Err(error) if error.is_passing() && self.tries < TRIES_SMALL => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// The same bytes, with an end after a silence that only a dead connection keeps.
fn until_silent(chunks: impl Stream<Item = reqwest::Result<Bytes>> + Send + Unpin + 'static) -> Chunks {
    stream::unfold(chunks, |mut chunks| async move {
        let chunk = match tokio::time::timeout(SILENCE_MAX, chunks.next()).await {
            Ok(None) => return None,
            Ok(Some(Ok(chunk))) => Ok(chunk),
            Ok(Some(Err(_))) | Err(_) => Err(Silence),
        };
        Some((chunk, chunks))
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_given_up() {
        let silent = stream::iter([Ok(Bytes::from_static(b": hello\n\n"))]).chain(stream::pending());
        let mut chunks = until_silent(silent.boxed());
        assert!(chunks.next().await.unwrap().is_ok());
        assert!(chunks.next().await.unwrap().is_err());
    }
}
