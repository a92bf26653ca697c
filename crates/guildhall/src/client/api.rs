//! The way to the server: one place that makes addresses, shows the token, tries again when told to, and turns what is
//! not a success into an [`Error`]. It knows HTTP and the contract's conventions, and no noun.

use std::{future::Future, time::Duration};

use futures::StreamExt as _;
use kit::{Clock, Secret};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url, header::RETRY_AFTER};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::{Error, Problem},
    session::{Session, SessionFile},
    tokens::{Granted, Tokens},
};

const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// An answer larger than this is not one of the contract's.
const ANSWER_BYTES_MAX: usize = 128 << 20;
/// A server that asks for a longer pause is told to the person instead.
const PAUSE_MAX: Duration = Duration::from_secs(10);
const PAUSES_MAX: u32 = 4;
/// Tries for what is small and safe to ask again: about 3 minutes of them, longer than a restart or a deploy takes.
pub(super) const TRIES_SMALL: u32 = 60;
/// Tries for what moves many bytes each time.
pub(super) const TRIES_LARGE: u32 = 5;
/// Items a list gives at a time; the most that the contract allows.
const PAGE_ITEMS: &str = "200";

/// A server, and who we are to it.
#[derive(Debug)]
pub(crate) struct Api {
    http: Client,
    base: Url,
    tokens: Tokens,
    clock: Clock,
}

/// One page of a list.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    #[serde(default)]
    pub(super) next_cursor: Option<String>,
}

impl Api {
    /// A server, with the session that `guildhall login` has kept for it.
    ///
    /// # Errors
    /// [`Error::Usage`] when `address` is not an http or https URL.
    pub(super) fn open(address: &str) -> Result<Self, Error> {
        let base = parse(address)?;
        let clock = Clock::system();
        let file = SessionFile::of_user(&shown(&base))?;
        Ok(Self { http: http(), tokens: Tokens::of_file(file, clock.clone()), base, clock })
    }

    /// A server, with a session of this process alone.
    ///
    /// # Errors
    /// [`Error::Usage`] when `address` is not an http or https URL, [`Error::Refused`] when the credentials are wrong,
    /// [`Error::Unreachable`].
    pub(crate) async fn sign_in(address: &str, email: &str, password: &Secret) -> Result<Self, Error> {
        let base = parse(address)?;
        let clock = Clock::system();
        let http = http();
        let granted = grant(&http, &base, "login", &credentials(email, password)).await?;
        Ok(Self { http, tokens: Tokens::in_memory(granted.into_session(clock.now()), clock.clone()), base, clock })
    }

    /// Where the server is, as the person wrote it but for a trailing slash.
    pub(super) fn address(&self) -> String {
        shown(&self.base)
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The address of a route: each segment is escaped, so that an id typed by hand stays one segment.
    pub(super) fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        route(&self.base, path, query)
    }

    pub(super) async fn get<T: DeserializeOwned>(&self, path: &[&str], query: &[(&str, &str)]) -> Result<T, Error> {
        let url = self.url(path, query);
        self.answer(self.send(|http| http.get(url.clone())).await?).await
    }

    /// `key` makes the request one that may be repeated: the server answers a repeat as it did the first time.
    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
        key: Option<&str>,
    ) -> Result<T, Error> {
        let url = self.url(path, &[]);
        let build = |http: &Client| {
            let request = http.post(url.clone()).json(body);
            if let Some(key) = key { request.header("idempotency-key", key) } else { request }
        };
        self.answer(self.send(build).await?).await
    }

    pub(super) async fn put<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Error> {
        let url = self.url(path, &[]);
        self.answer(self.send(|http| http.put(url.clone()).json(body)).await?).await
    }

    pub(super) async fn patch<T: DeserializeOwned>(&self, path: &[&str], body: &impl Serialize) -> Result<T, Error> {
        let url = self.url(path, &[]);
        self.answer(self.send(|http| http.patch(url.clone()).json(body)).await?).await
    }

    pub(super) async fn delete(&self, path: &[&str]) -> Result<(), Error> {
        let url = self.url(path, &[]);
        self.send(|http| http.request(Method::DELETE, url.clone())).await.map(drop)
    }

    /// Every item of a list, newest first, page by page.
    pub(super) async fn list<T: DeserializeOwned>(
        &self,
        path: &[&str],
        filter: &[(&str, &str)],
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let mut query = filter.to_vec();
            query.push(("limit", PAGE_ITEMS));
            if let Some(cursor) = &cursor {
                query.push(("cursor", cursor));
            }
            let page: Page<T> = self.get(path, &query).await?;
            all.extend(page.items);
            match page.next_cursor {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Sends what `build` makes, with the caller's token: again with another token when this one is refused, and again
    /// after a pause when the server asks for one. So `build` may be called more than once.
    ///
    /// # Errors
    /// [`Error::NotSignedIn`], [`Error::Unreachable`], [`Error::Broken`], and [`Error::Refused`] for any other answer than
    /// a success.
    pub(super) async fn send(&self, build: impl Fn(&Client) -> RequestBuilder) -> Result<Response, Error> {
        let mut rejected: Option<String> = None;
        let mut pauses = 0;
        loop {
            let exchange = async |token: &str| {
                grant(&self.http, &self.base, "refresh", &serde_json::json!({ "refresh_token": token })).await
            };
            let token = self.tokens.access(rejected.as_deref(), exchange).await?;
            let token = token.ok_or_else(|| Error::NotSignedIn { address: self.address() })?;
            let response =
                build(&self.http).bearer_auth(&token).send().await.map_err(|fault| transport(&self.base, &fault))?;
            match response.status() {
                status if status.is_success() => return Ok(response),
                StatusCode::UNAUTHORIZED if rejected.is_none() => rejected = Some(token),
                StatusCode::UNAUTHORIZED => return Err(Error::NotSignedIn { address: self.address() }),
                StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE if pauses < PAUSES_MAX => {
                    let Some(pause) = asked_pause(&response) else { return Err(refusal(&self.base, response).await) };
                    pauses += 1;
                    tokio::time::sleep(pause).await;
                }
                _ => return Err(refusal(&self.base, response).await),
            }
        }
    }

    pub(super) async fn answer<T: DeserializeOwned>(&self, response: Response) -> Result<T, Error> {
        read(&self.base, response).await
    }

    /// What to say when the bytes of an answer stopped coming.
    pub(super) fn broken(&self, fault: &reqwest::Error) -> Error {
        transport(&self.base, fault)
    }
}

/// Signs in and gives the session, for a command that keeps it.
pub(super) async fn sign_in(
    address: &str,
    email: &str,
    password: &Secret,
    clock: &Clock,
) -> Result<(Session, Vec<String>), Error> {
    let granted = grant(&http(), &parse(address)?, "login", &credentials(email, password)).await?;
    let roles = granted.user.roles.clone();
    Ok((granted.into_session(clock.now()), roles))
}

/// The address in the one form under which its session is kept.
pub(super) fn normal(address: &str) -> Result<String, Error> {
    parse(address).map(|url| shown(&url))
}

/// Does `act` up to `tries_max` times, with growing pauses, while it fails in a way that passes by itself.
///
/// # Errors
/// What `act` fails with at last.
pub(super) async fn patiently<T, F: Future<Output = Result<T, Error>>>(
    tries_max: u32,
    mut act: impl FnMut() -> F,
) -> Result<T, Error> {
    let mut tries = 0;
    loop {
        match act().await {
            Err(error) if error.is_passing() && tries + 1 < tries_max => {
                tokio::time::sleep(backoff(tries)).await;
                tries += 1;
            }
            settled => return settled,
        }
    }
}

/// 0.1 s, doubling up to 3.2 s: short enough to be back as soon as a restarted server is.
pub(super) fn backoff(tries: u32) -> Duration {
    Duration::from_millis(100 << tries.min(5))
}

fn http() -> Client {
    let builder =
        Client::builder().connect_timeout(CONNECT_WAIT).user_agent(concat!("guildhall/", env!("CARGO_PKG_VERSION")));
    builder.build().expect("built from constants: it fails only without a TLS provider, which main installs first")
}

fn parse(address: &str) -> Result<Url, Error> {
    let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    url.ok_or_else(|| Error::Usage(format!("`{address}` is not an address like http://127.0.0.1:8080.")))
}

fn shown(base: &Url) -> String {
    base.as_str().trim_end_matches('/').to_owned()
}

fn route(base: &Url, path: &[&str], query: &[(&str, &str)]) -> Url {
    let mut url = base.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(["api", "v1"]).extend(path);
    }
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    url
}

fn credentials(email: &str, password: &Secret) -> Value {
    serde_json::json!({ "email": email, "password": password.expose() })
}

async fn grant(http: &Client, base: &Url, verb: &str, body: &Value) -> Result<Granted, Error> {
    let sent = http.post(route(base, &["auth", verb], &[])).json(body).send().await;
    let response = sent.map_err(|fault| transport(base, &fault))?;
    if response.status().is_success() { read(base, response).await } else { Err(refusal(base, response).await) }
}

/// The pause that a refusal asks for, when it is one worth waiting for.
fn asked_pause(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds)).filter(|pause| *pause <= PAUSE_MAX)
}

async fn read<T: DeserializeOwned>(base: &Url, response: Response) -> Result<T, Error> {
    let body = body(base, response).await?;
    // 204 has no body; whoever awaits one of these asks for `()` or a `Value`, which null fits.
    let body = if body.is_empty() { b"null".as_slice() } else { &body };
    serde_json::from_slice(body).map_err(|fault| Error::Broken {
        address: shown(base),
        cause: format!("it is not what this version of the client knows ({fault})"),
    })
}

async fn body(base: &Url, response: Response) -> Result<Vec<u8>, Error> {
    let mut chunks = response.bytes_stream();
    let mut body = Vec::new();
    while let Some(chunk) = chunks.next().await {
        body.extend_from_slice(&chunk.map_err(|fault| transport(base, &fault))?);
        if body.len() > ANSWER_BYTES_MAX {
            return Err(Error::Broken { address: shown(base), cause: "it is larger than any answer should be".into() });
        }
    }
    Ok(body)
}

async fn refusal(base: &Url, response: Response) -> Error {
    let status = response.status();
    let body = match body(base, response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    // A proxy in between answers with a page of its own: its status is all there is to tell.
    let mut problem: Problem = serde_json::from_slice(&body).unwrap_or_default();
    problem.status = status.as_u16();
    if problem.title.is_empty() && problem.detail.is_none() {
        problem.title = format!("{} answered {status}.", shown(base));
    }
    Error::Refused(Box::new(problem))
}

fn transport(base: &Url, fault: &reqwest::Error) -> Error {
    let mut deepest: &dyn std::error::Error = fault;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    let (address, cause) = (shown(base), deepest.to_string());
    if !fault.is_connect() {
        return Error::Broken { address, cause };
    }
    let is_here = matches!(base.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    let hint = if is_here {
        "Start Guildhall with `./dev up`, or name another place with --url or GUILDHALL_URL."
    } else {
        "Is the address right? It comes from --url or GUILDHALL_URL."
    };
    Error::Unreachable { address, cause, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_typed_by_hand_stays_one_segment() {
        let base = parse("https://example.org/guildhall/").unwrap();
        let url = route(&base, &["jobs", "../x?y", "cancel"], &[("tag", "a b&c")]);
        assert_eq!(url.as_str(), "https://example.org/guildhall/api/v1/jobs/..%2Fx%3Fy/cancel?tag=a+b%26c");
    }

    #[test]
    fn one_place_has_one_session_however_it_is_written() {
        for same in ["http://127.0.0.1:8080", "http://127.0.0.1:8080/", "HTTP://127.0.0.1:8080//"] {
            assert_eq!(normal(same).unwrap(), "http://127.0.0.1:8080");
        }
        for wrong in ["127.0.0.1:8080", "ftp://x", "file:///x", ""] {
            assert_eq!(normal(wrong).unwrap_err().exit_code(), 64, "{wrong:?}");
        }
    }
}
