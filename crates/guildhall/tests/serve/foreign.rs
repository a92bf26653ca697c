//! Programs of somebody else's at a gRPC port: a worker, and a tool that has no contract of ours at hand.

use futures::stream;
use kit::{Secret, grpc::Call};
use prost_reflect::DescriptorPool;
use proto::{
    auth::{ExchangeServiceKeyRequest, service_keys_client::ServiceKeysClient},
    worker::{FromWorker, Hello, from_worker, to_worker, workers_client::WorkersClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::{peer, place::Process};

/// With nothing but the key and the port that `ready.json` tells.
pub(crate) async fn worker_is_welcome(process: &Process, key: &str) {
    let exchange = ExchangeServiceKeyRequest { key: key.to_owned() };
    let mut keys = ServiceKeysClient::new(peer(process, "auth"));
    let token =
        keys.exchange(Call::anonymous("foreign").request(exchange)).await.expect("the key is good").into_inner();
    let hello = Hello { profile: "foreign".to_owned(), slots: 1, ..Hello::default() };
    let hello = FromWorker { message: Some(from_worker::Message::Hello(hello)) };
    let call = Call::with_token(Secret::new(token.access_token), "foreign");
    let mut workers = WorkersClient::new(peer(process, "jobs"));
    let mut answers = workers.work(call.request(stream::iter([hello]))).await.expect("a stream").into_inner();
    let first = answers.message().await.expect("an answer").and_then(|answer| answer.message);
    assert!(matches!(first, Some(to_worker::Message::Welcome(_))), "{first:?}");
}

/// A conversation by reflection.
pub(crate) struct Looking {
    ask: mpsc::Sender<ServerReflectionRequest>,
    answers: Streaming<ServerReflectionResponse>,
}

impl Looking {
    async fn begin(process: &Process, call: &Call) -> Result<Self, tonic::Status> {
        let (ask, questions) = mpsc::channel(1);
        let mut client = ServerReflectionClient::new(peer(process, "jobs"));
        let questions = call.request(ReceiverStream::new(questions));
        let answers = client.server_reflection_info(questions).await?.into_inner();
        Ok(Self { ask, answers })
    }

    async fn ask(&mut self, question: MessageRequest) -> MessageResponse {
        let question = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
        self.ask.send(question).await.expect("it listens");
        let answer = self.answers.message().await.expect("it answers").expect("it goes on");
        answer.message_response.expect("an answer says something")
    }
}

/// The services of the port, and what is needed to call one of them; the conversation goes on.
pub(crate) async fn tool_learns_what_is_served(process: &Process, token: &str) -> Looking {
    let nobody = Looking::begin(process, &Call::anonymous("foreign")).await.map(drop);
    assert_eq!(nobody.expect_err("nobody is signed in").code(), Code::Unauthenticated);

    let mut looking = Looking::begin(process, &Call::with_token(Secret::new(token.to_owned()), "foreign"))
        .await
        .expect("it is there");
    let MessageResponse::ListServicesResponse(list) = looking.ask(MessageRequest::ListServices(String::new())).await
    else {
        panic!("it does not list");
    };
    let mut names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    names.sort_unstable();
    let expected = [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "guildhall.events.v1.Outbox",
        "guildhall.jobs.v1.Batches",
        "guildhall.jobs.v1.Files",
        "guildhall.jobs.v1.Jobs",
        "guildhall.jobs.v1.Queues",
        "guildhall.jobs.v1.Schedules",
        "guildhall.jobs.v1.Tasks",
        "guildhall.jobs.v1.Workers",
        "guildhall.worker.v1.Attempts",
        "guildhall.worker.v1.Workers",
    ];
    assert_eq!(names, expected);

    // Files by name until nothing is missing, as grpcurl does.
    let mut pool = DescriptorPool::new();
    for file in ["google/protobuf/descriptor.proto", "google/protobuf/timestamp.proto", "access.proto", "worker.proto"]
    {
        let answer = looking.ask(MessageRequest::FileByFilename(file.to_owned())).await;
        let MessageResponse::FileDescriptorResponse(files) = answer else { panic!("{file} is not told: {answer:?}") };
        for bytes in files.file_descriptor_proto {
            pool.decode_file_descriptor_proto(bytes.as_slice()).expect("it fits to those before");
        }
    }
    let workers = pool.get_service_by_name("guildhall.worker.v1.Workers").expect("it was told");
    assert!(workers.methods().any(|method| method.name() == "Work" && method.is_client_streaming()));
    looking
}

/// Where roles stand alone there is no reflection.
pub(crate) async fn tool_learns_nothing(process: &Process, token: &str) {
    let refused = Looking::begin(process, &Call::with_token(Secret::new(token.to_owned()), "foreign")).await.map(drop);
    assert_eq!(refused.expect_err("it is not there").code(), Code::Unimplemented);
}
