//! Reflection (`grpc.reflection.v1`): a tool such as grpcurl learns from the port itself what it serves, and with which
//! messages. It tells what stands in `proto/` and nothing else, and stands behind the guard like any method that wants to
//! know who calls. A port has it only where it was added.

use std::collections::BTreeSet;

use proto::{DESCRIPTORS, METHODS};
use tonic::service::Routes;
use tonic_reflection::server::Builder;

use crate::Fail;

/// The one method, a stream of questions and answers.
pub(super) const PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
/// Services at every port that are nobody's own.
const EVERYWHERE: [&str; 2] = ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"];

/// The same services, and reflection of those among Guildhall's that are of these packages (`jobs`).
///
/// # Errors
/// `internal` where the contract's descriptors do not fit together.
pub fn with_reflection(routes: Routes, packages: &[&str]) -> Result<Routes, Fail> {
    let services = METHODS.iter().filter_map(|method| method.path.trim_start_matches('/').split('/').next());
    let is_here = |service: &&str| service.split('.').nth(1).is_some_and(|package| packages.contains(&package));
    let names: BTreeSet<&str> = services.filter(is_here).chain(EVERYWHERE).collect();
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
    let builder = names.into_iter().fold(builder, Builder::with_service_name);
    Ok(routes.add_service(builder.build_v1().map_err(Fail::internal)?))
}
