//! The contracts between the roles, generated from `proto/`: clients and servers of every service, the events, and the
//! table of what each method demands of its caller. There is no hand-written logic here.

// Generated code keeps its own style.
#![allow(missing_debug_implementations, unreachable_pub, clippy::all)]

/// What a method's caller must show. Declared on the method in `proto/`, read by `kit::grpc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Anyone, without a token.
    Public,
    /// A live access token, whatever its roles.
    Authenticated,
    /// A `<noun>:<verb>` permission, as `:own` or `:any`.
    Permission(&'static str),
}

/// One gRPC method and its [`Need`].
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// `/package.Service/Method`, as on the wire.
    pub path: &'static str,
    pub need: Need,
    /// Whether either side may send many messages, so that a call may last.
    pub streams: bool,
}

/// Every method of every Guildhall service.
pub const METHODS: &[Method] = include!(concat!(env!("OUT_DIR"), "/access_table.rs"));

/// The encoded `FileDescriptorSet` of all of `proto/`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

pub mod access {
    tonic::include_proto!("guildhall.access.v1");
}
pub mod auth {
    tonic::include_proto!("guildhall.auth.v1");
}
pub mod jobs {
    tonic::include_proto!("guildhall.jobs.v1");
}
pub mod worker {
    tonic::include_proto!("guildhall.worker.v1");
}
pub mod events {
    tonic::include_proto!("guildhall.events.v1");
}
pub mod admin {
    tonic::include_proto!("guildhall.admin.v1");
}
pub mod cloudevents {
    tonic::include_proto!("io.cloudevents.v1");
}

// What a message with secrets or personal data shows of itself: see `build.rs`.
include!(concat!(env!("OUT_DIR"), "/masks.rs"));
