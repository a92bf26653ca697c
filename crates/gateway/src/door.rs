//! What every route has at hand: the roles behind, who may come in, and where bytes lie.

use std::{fmt, net::IpAddr, time::Duration};

use http::{HeaderMap, header};
use kit::{
    Clock, Fail,
    grpc::{Call, Credential, MESSAGE_BYTES_MAX, Peer},
    identity::Verifier,
    storage::Storage,
    tasks::Tasks,
};
use proto::{
    admin::{audit_client::AuditClient, health_client::HealthClient, parked_events_client::ParkedEventsClient},
    auth::{sessions_client::SessionsClient, signing_keys_client::SigningKeysClient, users_client::UsersClient},
    jobs::{
        batches_client::BatchesClient, files_client::FilesClient, jobs_client::JobsClient, queues_client::QueuesClient,
        schedules_client::SchedulesClient, tasks_client::TasksClient, workers_client::WorkersClient,
    },
};

use crate::{
    Settings,
    edge::{Proxies, RequestContext},
    places::Places,
    revocations::Revocations,
    route::Access,
};

/// What the gateway stands on. The parts it is started with, each made by whoever starts it.
#[derive(Debug)]
pub struct Parts {
    pub settings: Settings,
    /// Where people reach the gateway, without a slash at the end; also the issuer of access tokens.
    pub public_url: String,
    pub auth: Peer,
    pub jobs: Peer,
    pub admin: Peer,
    pub verifier: Verifier,
    pub storage: Storage,
    pub clock: Clock,
    pub tasks: Tasks,
    /// Its scope holds `revocations:watch`.
    pub credential: Credential,
}

/// The inside of the gateway, shared by every request.
pub struct Door {
    pub(crate) settings: Settings,
    pub(crate) public_url: String,
    pub(crate) storage: Storage,
    pub(crate) clock: Clock,
    pub(crate) tasks: Tasks,
    pub(crate) proxies: Proxies,
    pub(crate) revocations: Revocations,
    /// By where they come from, so far as that is known.
    pub(crate) requests: Places<Option<IpAddr>>,
    pub(crate) live_streams: Places,
    pub(crate) uploads: Places,
    /// The OpenAPI document, made once from the routes.
    pub(crate) openapi: bytes::Bytes,
    verifier: Verifier,
    auth: Peer,
    jobs: Peer,
    admin: Peer,
}

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").field("public_url", &self.public_url).finish_non_exhaustive()
    }
}

/// One method a generated client: the same message bound for all of them.
macro_rules! clients {
    ($($name:ident: $client:ident over $peer:ident),* $(,)?) => {
        $(pub(crate) fn $name(&self) -> $client<Peer> {
            $client::new(self.$peer.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
        })*
    };
}

impl Door {
    pub(crate) fn new(parts: Parts, openapi: bytes::Bytes) -> Result<Self, Fail> {
        Ok(Self {
            proxies: Proxies::parse(&parts.settings.trusted_proxies)?,
            requests: Places::new(parts.settings.http_requests_max),
            live_streams: Places::new(parts.settings.live_streams_max),
            uploads: Places::new(parts.settings.uploads_max),
            revocations: Revocations::new(parts.clock.clone()),
            public_url: parts.public_url.trim_end_matches('/').to_owned(),
            settings: parts.settings,
            storage: parts.storage,
            clock: parts.clock,
            tasks: parts.tasks,
            openapi,
            verifier: parts.verifier,
            auth: parts.auth,
            jobs: parts.jobs,
            admin: parts.admin,
        })
    }

    clients! {
        users: UsersClient over auth,
        sessions: SessionsClient over auth,
        signing_keys: SigningKeysClient over auth,
        job_client: JobsClient over jobs,
        batches: BatchesClient over jobs,
        task_client: TasksClient over jobs,
        queues: QueuesClient over jobs,
        schedules: SchedulesClient over jobs,
        workers: WorkersClient over jobs,
        files: FilesClient over jobs,
        audit: AuditClient over admin,
        parked_events: ParkedEventsClient over admin,
        health: HealthClient over admin,
    }

    /// Longest time that a body may stay away.
    pub(crate) fn stall(&self) -> Duration {
        Duration::from_secs(u64::from(self.settings.stall_s))
    }

    /// Lets a request in, or says why not: the token is verified, the permission is looked up, and the session must not
    /// have ended since.
    pub(crate) async fn admit(
        &self,
        access: Access,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<Call, Fail> {
        let call = if access == Access::Public {
            // A token on a public route is neither needed nor believed.
            Call::anonymous(&context.id)
        } else {
            let caller = self.verifier.verify(bearer(headers)?).await?;
            context.is_by(&caller);
            if let Access::Permission(permission) = access {
                caller.require(permission)?;
            }
            let call = Call::by(caller, &context.id);
            self.revocations.admit(&call, || self.sessions()).await?;
            call
        };
        let address = context.client.map(|address| address.to_string()).unwrap_or_default();
        let user_agent = headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Ok(call.with_origin(address, user_agent).with_traceparent(context.traceparent.clone()))
    }
}

fn bearer(headers: &HeaderMap) -> Result<&str, Fail> {
    let missing = || Fail::unauthenticated("auth.required", "Sign in first: this needs an access token.");
    let value = headers.get(header::AUTHORIZATION).ok_or_else(missing)?;
    let (scheme, token) = value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or_else(missing)?;
    // The scheme's name has no case (RFC 9110, section 11.1).
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(missing()) }
}
