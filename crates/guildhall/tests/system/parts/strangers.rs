//! Another's ids in every gRPC method that takes one, called at its own port. Methods and their fields are read from the
//! contract's own descriptors, so that a new one is tried from the day it exists.

use bytes::Bytes;
use kit::{
    Fail, Secret,
    grpc::{Call, Peer},
    identity::Role,
};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage as _, Value,
};
use proto::{
    METHODS, Method, Need,
    jobs::{AddBatchJobsRequest, JobSpec},
};
use serde_json::json;
use tonic::{Code, client::Grpc};

use super::{
    Parts,
    methods::{Raw, served_by},
};
use crate::{pictures, wait::SOON};

/// An id that nothing has.
const NOBODYS: &str = "01890000-0000-7000-8000-000000000000";

/// What somebody owns.
struct Things {
    user: String,
    job: String,
    batch: String,
    file: String,
    schedule: String,
    session: String,
}

impl Things {
    /// The id that a field of a method is for.
    fn id_for(&self, field: &FieldDescriptor, method: &Method) -> String {
        let noun = match field.name() {
            "id" => method.path.rsplit(['.', '/']).nth(1).unwrap_or_default(),
            name => name,
        };
        match noun {
            "Users" | "owner_id" => &self.user,
            "Jobs" | "job_id" => &self.job,
            "Batches" | "batch_id" => &self.batch,
            "Files" => &self.file,
            "Schedules" => &self.schedule,
            "Sessions" => &self.session,
            _ => panic!("whose id is `{}` of {}? Tell this test", field.name(), method.path),
        }
        .clone()
    }
}

/// A method's message, good but for the ids: where the rest is judged before they are looked up, it must be.
fn message(method: &Method, input: MessageDescriptor) -> DynamicMessage {
    let filled = match method.path {
        "/guildhall.jobs.v1.Batches/AddJobs" => {
            let spec = JobSpec { task: "demo_echo".into(), args_json: r#"{"value":1}"#.into(), ..JobSpec::default() };
            AddBatchJobsRequest { batch_id: String::new(), jobs: vec![spec] }.encode_to_vec()
        }
        _ => Vec::new(),
    };
    DynamicMessage::decode(input, filled.as_slice()).expect("its own message")
}

/// The message with an id in each of its fields that take one, at whatever depth; none where it has no such field.
fn with_ids(mut message: DynamicMessage, id: &impl Fn(&FieldDescriptor) -> String) -> Option<DynamicMessage> {
    let mut has_id = false;
    for field in message.descriptor().fields().filter(|field| !field.is_list() && !field.is_map()) {
        match field.kind() {
            Kind::String if field.name() == "id" || field.name().ends_with("_id") => {
                message.set_field(&field, Value::String(id(&field)));
                has_id = true;
            }
            Kind::Message(inner) if inner.package_name().starts_with("guildhall.") => {
                if let Some(inner) = with_ids(DynamicMessage::new(inner), id) {
                    message.set_field(&field, Value::Message(inner));
                    has_id = true;
                }
            }
            _ => {}
        }
    }
    has_id.then_some(message)
}

/// The answer's first message as it stands on the wire, or what the call was refused with.
async fn call(peer: &Peer, method: &Method, token: &str, message: &DynamicMessage) -> Result<Bytes, (Code, String)> {
    let call = Call::with_token(Secret::new(token.to_owned()), "strangers");
    let mut client = Grpc::new(peer.clone());
    client.ready().await.expect("the port is there");
    let path = method.path.parse().expect("a path");
    let answer = async {
        let request = call.request(Bytes::from(message.encode_to_vec()));
        let mut stream = client.server_streaming(request, path, Raw).await?.into_inner();
        Ok(stream.message().await?.unwrap_or_default())
    };
    answer.await.map_err(|status: tonic::Status| (status.code(), Fail::from(status).code().to_owned()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_id_at_a_methods_own_port_is_an_id_of_nothing() {
    let parts = Parts::open(&[]).await;
    let (owner, other) = (parts.newcomer("ada").await, parts.newcomer("mallory").await);
    let file = owner.upload(vec![("hers.png".to_owned(), pictures::small_png())]).await.remove(0);
    let job = owner.submit("process_batch", json!({ "file_ids": [file] })).await;
    let batch = owner.field(&job, "child_batch_id").await.as_str().expect("an id").to_owned();
    owner.finished(&job, SOON).await;
    let asked = json!({ "cron": "@yearly", "job": { "task": "demo_echo", "args": { "value": 1 } } });
    let made = owner.post("/api/v1/schedules", &asked).await.expect(201);
    let schedule = made["id"].as_str().expect("an id").to_owned();
    let sessions = owner.list("/api/v1/auth/sessions").await;
    let session = sessions[0]["id"].as_str().expect("an id").to_owned();
    let hers = Things { user: owner.id.clone(), job, batch, file, schedule, session };
    let (owners_token, others_token) = (owner.token().await, other.token().await);

    let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the contract's descriptors");
    let input = |method: &Method| {
        let (service, name) = method.path.trim_start_matches('/').split_once('/').expect("a path");
        let service = pool.get_service_by_name(service).expect("a service of the contract");
        service.methods().find(|method| method.name() == name).expect("a method of the contract").input()
    };
    let is_open = |method: &&Method| match method.need {
        Need::Permission(permission) => Role::Customer.reach(permission).is_some(),
        Need::Authenticated => true,
        Need::Public => false,
    };
    let mut tried = Vec::new();
    for method in METHODS.iter().filter(is_open) {
        let with = |id: &dyn Fn(&FieldDescriptor) -> String| with_ids(message(method, input(method)), &id);
        let Some(asked) = with(&|field| hers.id_for(field, method)) else { continue };
        let nothing = with(&|_| NOBODYS.to_owned()).expect("it takes an id");
        for served_by in served_by(method) {
            for peer in parts.peers(served_by) {
                let refused = call(&peer, method, &others_token, &asked).await;
                let absent = call(&peer, method, &others_token, &nothing).await;
                assert_eq!(refused, absent, "{method:?} tells a stranger's id from one of nothing");
                if method.path.ends_with("/List") {
                    assert_eq!(refused, Ok(Bytes::new()), "{method:?} lists what is another's");
                } else {
                    assert_eq!(refused.err().map(|(code, _)| code), Some(Code::NotFound), "{method:?}");
                }
            }
        }
        tried.push((method, asked));
    }
    assert!(tried.len() >= 22, "{} methods with an id are too few to be all", tried.len());

    // Each of these messages is good, and what it names was there all the while: its owner is told something else.
    // What removes it goes last.
    tried.sort_by_key(|(method, _)| method.path.ends_with("/Remove"));
    for (method, asked) in &tried {
        let peer = parts.peers(served_by(method)[0]).remove(0);
        let answer = call(&peer, method, &owners_token, asked).await;
        assert_ne!(answer.as_ref().err().map(|(code, _)| *code), Some(Code::NotFound), "{method:?}: {answer:?}");
        let lists_nothing = method.path.ends_with("/List") && answer == Ok(Bytes::new());
        assert!(!lists_nothing, "{method:?} lists nothing of hers");
    }
    parts.close().await;
    println!("{} methods at their ports, with a stranger's ids and with nobody's", tried.len());
}
