//! A route and everything it declares. The router, the OpenAPI document and the tests are made from these declarations,
//! so that a route which is not documented, not guarded or not bounded cannot be reached.
//!
//! A route is written in one breath, and leaving a step out does not compile:
//!
//! ```
//! use std::time::Duration;
//! use gateway::route::{Access, Ask, Fails, Idempotency, Limits, Nothing, Reply, Route};
//!
//! async fn answer(_: Ask) -> Result<Reply<200, u32>, kit::Fail> {
//!     Ok(Reply::new(42))
//! }
//!
//! Route::get("/api/v1/answer", "meta", "The answer")
//!     .access(Access::Public, &[])
//!     .limits(Limits { body_bytes_max: 0, within: Duration::from_secs(10) })
//!     .idempotency(Idempotency::ByNature)
//!     .refuses(Fails::NONE)
//!     .by(answer);
//! ```
//!
//! Without its access, for one:
//!
//! ```compile_fail
//! use std::time::Duration;
//! use gateway::route::{Access, Ask, Fails, Idempotency, Limits, Nothing, Reply, Route};
//!
//! async fn answer(_: Ask) -> Result<Reply<200, u32>, kit::Fail> {
//!     Ok(Reply::new(42))
//! }
//!
//! Route::get("/api/v1/answer", "meta", "The answer")
//!     .limits(Limits { body_bytes_max: 0, within: Duration::from_secs(10) })
//!     .idempotency(Idempotency::ByNature)
//!     .refuses(Fails::NONE)
//!     .by(answer);
//! ```

mod answer;
mod ask;
mod run;
pub(crate) use ask::stalled;
pub(crate) use run::with_streamed_body;
mod shape;

use std::{fmt, future::Future, marker::PhantomData, sync::Arc, time::Duration};

use axum::routing::{MethodFilter, MethodRouter};
use futures::future::BoxFuture;
use http::Method;
use kit::Fail;
use proto::Need;
use schemars::{SchemaGenerator, generate::SchemaSettings};

pub use answer::{AcceptedOrThere, Answer, Content, Described, Events, NoContent, Page, Reply};
pub use ask::{
    Ask, BodyInput, Bounds, Id, Json, JsonOrNothing, Named, Nothing, Parameter, PathInput, Query, QueryInput,
    UploadBody,
};
pub use shape::Shape;

use crate::door::Door;

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone.
    Public,
    /// A live access token.
    Authenticated,
    /// A live access token whose roles include this `<noun>:<verb>`.
    Permission(&'static str),
}

impl From<Need> for Access {
    fn from(need: Need) -> Self {
        match need {
            Need::Public => Self::Public,
            Need::Authenticated => Self::Authenticated,
            Need::Permission(permission) => Self::Permission(permission),
        }
    }
}

/// How large a request may be and how long it may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of the request's body. An upload is bounded by the sizes of its files instead, see [`UploadBody`].
    pub body_bytes_max: usize,
    /// From the request's head to the answer's; a streamed body, either way, is bounded by its stalls.
    pub within: Duration,
}

/// What a repeat of the same request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idempotency {
    /// Nothing more than the first did.
    ByNature,
    /// Nothing more, when both carry the same `Idempotency-Key`.
    ByKey,
    /// It acts again.
    Never,
}

/// The refusals a route declares beyond those that every route may answer with: their stable codes and statuses.
#[derive(Debug, Clone, Copy)]
pub struct Fails(pub &'static [(u16, &'static str)]);

impl Fails {
    pub const NONE: Self = Self(&[]);
}

type Handle =
    Arc<dyn Fn(Arc<Door>, axum::extract::Request) -> BoxFuture<'static, axum::response::Response> + Send + Sync>;
type Describe = Arc<dyn Fn(&mut Schemas) -> Signature + Send + Sync>;

/// The schemas that signatures refer to. What is read and what is written are told apart, since an answer's field is
/// always there where a request's may be left out.
#[derive(Debug)]
pub struct Schemas {
    pub taken: SchemaGenerator,
    pub given: SchemaGenerator,
}

impl Default for Schemas {
    fn default() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        Self {
            taken: settings.clone().for_deserialize().into_generator(),
            given: settings.for_serialize().into_generator(),
        }
    }
}

/// What a route takes and gives, as JSON Schema and parameters.
#[derive(Debug)]
pub struct Signature {
    pub parameters: Vec<Parameter>,
    /// Media type, schema, and whether it must be there.
    pub body: Option<(&'static str, serde_json::Value, bool)>,
    pub answers: Vec<Described>,
}

/// One complete route.
#[derive(Clone)]
pub struct Route {
    pub(crate) declared: Declared,
    handle: Handle,
    describe: Describe,
}

/// What is said about a route in so many words.
#[derive(Debug, Clone)]
pub struct Declared {
    pub method: Method,
    /// With parameters in braces, as the router and OpenAPI both write them.
    pub path: &'static str,
    /// The area it is listed under.
    pub tag: &'static str,
    pub summary: &'static str,
    pub access: Access,
    /// The gRPC methods it calls, as on the wire.
    pub calls: &'static [&'static str],
    pub limits: Limits,
    pub idempotency: Idempotency,
    pub fails: Fails,
}

impl Route {
    /// Starts a route that reads. `HEAD` is answered too.
    pub fn get(path: &'static str, tag: &'static str, summary: &'static str) -> Draft<WantsAccess> {
        Draft::new(Method::GET, path, tag, summary)
    }
    /// Starts a route that acts.
    pub fn post(path: &'static str, tag: &'static str, summary: &'static str) -> Draft<WantsAccess> {
        Draft::new(Method::POST, path, tag, summary)
    }
    /// Starts a route that puts one thing in the place of another.
    pub fn put(path: &'static str, tag: &'static str, summary: &'static str) -> Draft<WantsAccess> {
        Draft::new(Method::PUT, path, tag, summary)
    }
    /// Starts a route that changes the parts that are said of one thing.
    pub fn patch(path: &'static str, tag: &'static str, summary: &'static str) -> Draft<WantsAccess> {
        Draft::new(Method::PATCH, path, tag, summary)
    }
    /// Starts a route that removes.
    pub fn delete(path: &'static str, tag: &'static str, summary: &'static str) -> Draft<WantsAccess> {
        Draft::new(Method::DELETE, path, tag, summary)
    }

    /// What it takes and gives; what it refers to goes into `schemas`.
    pub fn signature(&self, schemas: &mut Schemas) -> Signature {
        (self.describe)(schemas)
    }

    pub fn declared(&self) -> &Declared {
        &self.declared
    }

    pub(crate) fn router(&self, door: Arc<Door>) -> MethodRouter {
        let handle = self.handle.clone();
        let filter = match self.declared.method {
            Method::GET => MethodFilter::GET,
            Method::PUT => MethodFilter::PUT,
            Method::PATCH => MethodFilter::PATCH,
            Method::DELETE => MethodFilter::DELETE,
            // No other constructor exists.
            _ => MethodFilter::POST,
        };
        axum::routing::on(filter, move |request: axum::extract::Request| handle(door.clone(), request))
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Route").field(&self.declared).finish()
    }
}

/// A route that has not declared everything yet; `Step` says what comes next.
#[derive(Debug)]
pub struct Draft<Step> {
    declared: Declared,
    step: PhantomData<Step>,
}

/// The next step of a [`Draft`] is [`access`](Draft::access).
#[derive(Debug)]
pub struct WantsAccess;
/// The next step of a [`Draft`] is [`limits`](Draft::limits).
#[derive(Debug)]
pub struct WantsLimits;
/// The next step of a [`Draft`] is [`idempotency`](Draft::idempotency).
#[derive(Debug)]
pub struct WantsIdempotency;
/// The next step of a [`Draft`] is [`refuses`](Draft::refuses).
#[derive(Debug)]
pub struct WantsFails;
/// The next step of a [`Draft`] is [`by`](Draft::by).
#[derive(Debug)]
pub struct WantsHandler;

impl<Step> Draft<Step> {
    fn next<Next>(self, change: impl FnOnce(&mut Declared)) -> Draft<Next> {
        let mut declared = self.declared;
        change(&mut declared);
        Draft { declared, step: PhantomData }
    }
}

impl Draft<WantsAccess> {
    fn new(method: Method, path: &'static str, tag: &'static str, summary: &'static str) -> Self {
        let declared = Declared {
            method,
            path,
            tag,
            summary,
            access: Access::Public,
            calls: &[],
            limits: Limits { body_bytes_max: 0, within: Duration::ZERO },
            idempotency: Idempotency::Never,
            fails: Fails::NONE,
        };
        Self { declared, step: PhantomData }
    }

    /// Who may call it, and which gRPC methods it calls: a test holds the two to the same access.
    pub fn access(self, access: Access, calls: &'static [&'static str]) -> Draft<WantsLimits> {
        self.next(|declared| (declared.access, declared.calls) = (access, calls))
    }
}

impl Draft<WantsLimits> {
    pub fn limits(self, limits: Limits) -> Draft<WantsIdempotency> {
        self.next(|declared| declared.limits = limits)
    }
}

impl Draft<WantsIdempotency> {
    pub fn idempotency(self, idempotency: Idempotency) -> Draft<WantsFails> {
        self.next(|declared| declared.idempotency = idempotency)
    }
}

impl Draft<WantsFails> {
    /// The refusals of its own.
    pub fn refuses(self, fails: Fails) -> Draft<WantsHandler> {
        self.next(|declared| declared.fails = fails)
    }
}

impl Draft<WantsHandler> {
    /// The function that answers. What it takes and gives is read off its types.
    pub fn by<P, Q, B, A, H, F>(self, handler: H) -> Route
    where
        P: PathInput,
        Q: QueryInput,
        B: BodyInput,
        A: Answer,
        H: Fn(Ask<P, Q, B>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<A, Fail>> + Send + 'static,
    {
        let declared = self.declared;
        let describe = |schemas: &mut Schemas| {
            let mut parameters = P::describe();
            parameters.extend(Q::describe());
            Signature { parameters, body: B::describe(&mut schemas.taken), answers: A::describe(&mut schemas.given) }
        };
        let handle = run::handle::<P, Q, B, A, H, F>(Arc::new(declared.clone()), handler);
        Route { declared, handle, describe: Arc::new(describe) }
    }
}
