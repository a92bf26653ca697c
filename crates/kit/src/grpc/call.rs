//! What travels with every call: whose it is, the request it belongs to, where that came from, and its idempotency key.

use std::{fmt, str::FromStr, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD_NO_PAD};
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};

use super::deadline;
use crate::{
    Fail, Secret,
    identity::Caller,
    telemetry::context::{TRACEPARENT, is_traceparent},
};

const REQUEST_ID: &str = "x-request-id";
const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_DIGEST: &str = "idempotency-digest";
const REMOTE_ADDRESS: &str = "x-remote-address";
const USER_AGENT: &str = "x-user-agent";

/// An IPv6 address with its zone fits.
const REMOTE_ADDRESS_CHARS_MAX: usize = 64;
/// Longest kept of what a client says about itself, in characters.
const USER_AGENT_CHARS_MAX: usize = 256;

/// A caller's idempotency key, with the SHA-256 of the body it came with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// As the caller chose it, 1 to 255 visible ASCII characters.
    pub key: String,
    pub digest: [u8; 32],
}

/// The context of one call. A server finds it in the request's extensions; a client makes requests from it, so that the
/// caller's own token goes all the way.
#[derive(Clone, Default)]
pub struct Call {
    /// The verified caller; `None` on a public method called without a token.
    pub caller: Option<Caller>,
    pub request_id: String,
    pub traceparent: Option<String>,
    pub idempotency: Option<IdempotencyKey>,
    /// When the caller stops waiting; [`request`](Self::request) tells the next role what is left of it.
    pub deadline: Option<Instant>,
    /// Where the person or program is that asked, as the gateway saw it, at most 64 characters. Empty for what did not come
    /// through it. Whoever calls a role directly says what it likes here: it is for telling, and decides on no permission.
    pub remote_address: String,
    /// What the asking program says of itself, at most 256 characters. As much to be believed.
    pub user_agent: String,
    token: Option<Secret>,
}

impl Call {
    /// A call nobody is signed in to, as for login.
    pub fn anonymous(request_id: impl Into<String>) -> Self {
        Self { request_id: request_id.into(), ..Self::default() }
    }

    /// A call by a caller that was verified here.
    pub fn by(caller: Caller, request_id: impl Into<String>) -> Self {
        let token = Some(caller.token().clone());
        Self { caller: Some(caller), request_id: request_id.into(), token, ..Self::default() }
    }

    /// A call that shows a token which the other side verifies, as a service account's.
    pub fn with_token(token: Secret, request_id: impl Into<String>) -> Self {
        Self { token: Some(token), request_id: request_id.into(), ..Self::default() }
    }

    #[must_use]
    pub fn with_idempotency(mut self, key: Option<IdempotencyKey>) -> Self {
        self.idempotency = key;
        self
    }

    #[must_use]
    pub fn with_origin(mut self, remote_address: impl Into<String>, user_agent: impl Into<String>) -> Self {
        (self.remote_address, self.user_agent) = (remote_address.into(), user_agent.into());
        self
    }

    /// Ends this call, and each that is made for it, at `deadline` at the latest.
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline;
        self
    }

    #[must_use]
    pub fn with_traceparent(mut self, traceparent: Option<String>) -> Self {
        self.traceparent = traceparent;
        self
    }

    /// The verified caller.
    ///
    /// # Errors
    /// `auth.required` on a call without one.
    pub fn caller(&self) -> Result<&Caller, Fail> {
        self.caller.as_ref().ok_or_else(unauthenticated)
    }

    /// The context the guard attached to a request that reached a handler.
    ///
    /// # Errors
    /// `internal` for a server that was mounted without its guard.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Fail> {
        request.extensions().get::<Self>().ok_or_else(|| Fail::internal("a gRPC server was mounted without its guard"))
    }

    /// A request that carries this context to the next role.
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(token) = &self.token {
            put(metadata, "authorization", &format!("Bearer {}", token.expose()));
        }
        put(metadata, REQUEST_ID, &self.request_id);
        if let Some(traceparent) = &self.traceparent {
            put(metadata, TRACEPARENT, traceparent);
        }
        for (name, told) in [(REMOTE_ADDRESS, &self.remote_address), (USER_AGENT, &self.user_agent)] {
            if !told.is_empty() {
                put(metadata, name, told);
            }
        }
        if let Some(idempotency) = &self.idempotency {
            put(metadata, IDEMPOTENCY_KEY, &idempotency.key);
            put(metadata, IDEMPOTENCY_DIGEST, &BASE64_STANDARD_NO_PAD.encode(idempotency.digest));
        }
        if let Some(deadline) = self.deadline {
            deadline::write(metadata.as_mut(), deadline);
        }
        request
    }

    /// As [`request`](Self::request), answered within `time` or not at all.
    pub fn request_within<T>(&self, time: Duration, message: T) -> tonic::Request<T> {
        let mut request = self.request(message);
        let ours = Instant::now() + time;
        let deadline = self.deadline.map_or(ours, |callers| callers.min(ours));
        deadline::write(request.metadata_mut().as_mut(), deadline);
        request
    }

    pub(super) fn read(headers: &http::HeaderMap, caller: Option<Caller>) -> Result<Self, Fail> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        // Header values that are text hold no control characters but the tab.
        let bounded = |name: &str, chars_max| -> String {
            text(name).unwrap_or_default().chars().filter(|c| !c.is_control()).take(chars_max).collect()
        };
        let idempotency = match (text(IDEMPOTENCY_KEY), text(IDEMPOTENCY_DIGEST)) {
            (Some(key), Some(digest)) => {
                let digest = BASE64_STANDARD_NO_PAD.decode(digest).ok().and_then(|bytes| bytes.try_into().ok());
                let digest = digest
                    .ok_or_else(|| Fail::malformed("idempotency.malformed", "The idempotency digest is malformed."))?;
                Some(IdempotencyKey { key, digest })
            }
            _ => None,
        };
        let token = caller.as_ref().map(|caller| caller.token().clone());
        Ok(Self {
            caller,
            request_id: text(REQUEST_ID).unwrap_or_default(),
            traceparent: text(TRACEPARENT).filter(|text| is_traceparent(text)),
            idempotency,
            deadline: None,
            remote_address: bounded(REMOTE_ADDRESS, REMOTE_ADDRESS_CHARS_MAX),
            user_agent: bounded(USER_AGENT, USER_AGENT_CHARS_MAX),
            token,
        })
    }
}

/// Without what tells where somebody is.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("caller", &self.caller)
            .field("request_id", &self.request_id)
            .field("traceparent", &self.traceparent)
            .finish_non_exhaustive()
    }
}

fn put(metadata: &mut MetadataMap, name: &'static str, value: &str) {
    if let (Ok(name), Ok(value)) = (MetadataKey::<Ascii>::from_str(name), MetadataValue::try_from(value)) {
        metadata.insert(name, value);
    }
}

pub(super) fn unauthenticated() -> Fail {
    Fail::unauthenticated("auth.required", "Sign in first: this needs an access token.")
}
