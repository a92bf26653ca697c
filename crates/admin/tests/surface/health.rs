//! How every process fares: heard by any replica, seen by all, forgotten in the end.

use std::time::Duration;

use kit::{
    Fail, Kind, Secret,
    grpc::{Call, Credential, Guard, MESSAGE_BYTES_MAX, Peer},
    health::{Checks, Reporter},
    identity::Verifier,
};
use proto::{
    admin::{Dependency, GetHealthRequest, GetHealthResponse, Replica, ReportRequest},
    auth::{
        ExchangeServiceKeyRequest, ServiceToken,
        service_keys_server::{ServiceKeys, ServiceKeysServer},
    },
};
use tonic::{Request, Response, Status, service::Routes};

use crate::support::{House, account, answer, code, someone, soon, token};

async fn report(house: &House, replica: Replica) -> Result<(), Fail> {
    report_as(house, &account("health:report:any"), replica).await
}

async fn report_as(house: &House, call: &Call, replica: Replica) -> Result<(), Fail> {
    answer(house.health().report(call.request(ReportRequest { replica: Some(replica) })).await).map(drop)
}

async fn health(house: &House) -> GetHealthResponse {
    answer(house.health().get(someone("operator").request(GetHealthRequest {})).await).expect("an answer")
}

fn replica(house: &House, roles: &[&str]) -> Replica {
    Replica {
        id: house.clock.new_id().to_string(),
        roles: roles.iter().map(|role| (*role).to_owned()).collect(),
        version: "1.2.3".to_owned(),
        host: "here".to_owned(),
        pid: 7,
        dependencies: vec![Dependency { name: "database".to_owned(), ok: true, ..Dependency::default() }],
        ..Replica::default()
    }
}

#[tokio::test]
async fn all_is_well_only_while_every_role_is_heard_of_and_whatever_it_stands_on_answers() {
    let house = House::open().await;
    let other = house.replica().await;
    let nobody = health(&house).await;
    assert!(!nobody.ok);
    assert_eq!(nobody.missing_roles, ["auth", "jobs", "admin", "gateway", "worker"]);

    let most = replica(&house, &["auth", "jobs", "admin", "gateway"]);
    report(&house, most.clone()).await.expect("heard");
    assert_eq!(health(&house).await.missing_roles, ["worker"]);
    let mut worker = replica(&house, &["worker"]);
    report(&other, worker.clone()).await.expect("heard");
    for either in [&house, &other] {
        let all = health(either).await;
        assert!(all.ok && all.missing_roles.is_empty(), "{all:?}");
        assert_eq!(all.replicas.len(), 2);
        assert!(all.replicas.iter().all(|replica| replica.live && replica.reported_at.is_some()));
    }

    worker.dependencies[0].ok = false;
    report(&other, worker.clone()).await.expect("heard");
    let ill = health(&house).await;
    assert!(!ill.ok && ill.missing_roles.is_empty() && ill.replicas.len() == 2, "{ill:?}");
    worker.dependencies[0].ok = true;
    report(&house, worker).await.expect("heard");
    assert!(health(&house).await.ok);
}

#[tokio::test]
async fn a_process_that_falls_silent_is_gone_after_seconds_and_forgotten_after_minutes() {
    let house = House::open().await;
    let first = replica(&house, &["auth", "jobs", "admin", "gateway", "worker"]);
    report(&house, first.clone()).await.expect("heard");
    house.clock.advance(Duration::from_secs(9));
    assert!(health(&house).await.ok);
    house.clock.advance(Duration::from_secs(1));
    let silent = health(&house).await;
    assert!(!silent.ok && silent.missing_roles.len() == 5, "{silent:?}");
    assert_eq!((silent.replicas.len(), silent.replicas[0].live), (1, false));

    // Its place taken by another life of it, all is well again; what is gone is shown, and hinders nothing.
    let mut second = first.clone();
    second.id = house.clock.new_id().to_string();
    report(&house, second).await.expect("heard");
    let healed = health(&house).await;
    assert!(healed.ok && healed.replicas.len() == 2, "{healed:?}");

    house.clock.advance(Duration::from_secs(5 * 60));
    assert_eq!(health(&house).await.replicas, []);
    assert!(house.sweep().await.is_empty());
    let rows: i64 =
        sqlx::query_scalar("select count(*) from admin.replica").fetch_one(house.pool()).await.expect("rows");
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn a_report_without_sense_or_by_whom_it_may_not_be_made_is_refused() {
    let house = House::open().await;
    let nameless = Replica { id: String::new(), ..replica(&house, &["auth"]) };
    let large = Replica { host: "x".repeat(65_536), ..replica(&house, &["auth"]) };
    for wrong in [nameless, replica(&house, &[]), large] {
        assert_eq!(code(report(&house, wrong).await), "admin.invalid_report");
    }
    for call in [someone("operator"), someone("customer"), account("health:read")] {
        let message = ReportRequest { replica: Some(replica(&house, &["auth"])) };
        let refused = answer(house.health().report(call.request(message)).await).expect_err("it is no reporter");
        assert_eq!(refused.kind(), Kind::Forbidden);
    }
    assert_eq!(health(&house).await.replicas, []);
}

/// What its key is worth, a worker says of itself; that `auth` lives is not its to say.
#[tokio::test]
async fn who_may_report_of_workers_alone_is_refused_any_other_role() {
    let house = House::open().await;
    let of_workers = account("health:report");
    for roles in [&["auth"][..], &["worker", "auth"], &["worker", "gateway"]] {
        let refused = report_as(&house, &of_workers, replica(&house, roles)).await.expect_err("it is no worker alone");
        assert_eq!(refused.kind(), Kind::Forbidden, "{roles:?}");
    }
    assert_eq!(health(&house).await.replicas, []);
    report_as(&house, &of_workers, replica(&house, &["worker"])).await.expect("heard");
    assert_eq!(health(&house).await.missing_roles, ["auth", "jobs", "admin", "gateway"]);
}

#[tokio::test]
async fn as_many_processes_as_are_shown_fit_into_an_answer_however_much_they_say() {
    let house = House::open().await;
    let wordy = Replica { host: "x".repeat(8_000), ..replica(&house, &["worker"]) };
    report(&house, wordy).await.expect("heard");
    sqlx::query(
        "insert into admin.replica (id, report, reported_at)
         select gen_random_uuid(), report, reported_at from admin.replica cross join generate_series(2, 1000)",
    )
    .execute(house.pool())
    .await
    .expect("999 more that say as much");
    let larger = Replica { host: "x".repeat(8_192), ..replica(&house, &["worker"]) };
    assert_eq!(code(report(&house, larger).await), "admin.invalid_report");
    let mut client = house.health().max_decoding_message_size(MESSAGE_BYTES_MAX);
    let shown = answer(client.get(someone("operator").request(GetHealthRequest {})).await).expect("an answer");
    assert_eq!(shown.replicas.len(), 1000);
}

/// Stands in for `auth`: any key is good for reporting.
struct Keys;

#[tonic::async_trait]
impl ServiceKeys for Keys {
    async fn exchange(&self, request: Request<ExchangeServiceKeyRequest>) -> Result<Response<ServiceToken>, Status> {
        assert_eq!(request.get_ref().key, "gld_test_key");
        let access_token = token(uuid::Uuid::nil(), "service", "health:report:any").expose().clone();
        Ok(Response::new(ServiceToken { access_token, expires_in: 300 }))
    }
}

#[tokio::test]
async fn a_process_tells_of_itself_what_its_checks_and_its_outbox_say() {
    let house = House::open().await;
    let nobody = Verifier::new("", std::sync::Arc::new(|| Box::pin(async { Err(Fail::internal("no keys")) })));
    let auth = Peer::local(Routes::new(ServiceKeysServer::new(Keys)), &Guard::new(nobody));
    let reporter = Reporter {
        admin: house.peer.clone(),
        credential: Credential::new(auth, Secret::new("gld_test_key".to_owned()), "service_key"),
        roles: vec!["admin", "worker"],
        version: "1.2.3",
        checks: Checks::default()
            .with("rock", async || Ok(()))
            .with("swamp", async || Err(Fail::unavailable("swamp", "It sinks.").caused_by("a secret"))),
        outboxes: vec![(admin::SCHEMA, house.admin.pool().clone())],
        clock: house.clock.clone(),
    };
    reporter.start(&house.tasks);
    let heard = soon(async {
        loop {
            let health = health(&house).await;
            if !health.replicas.is_empty() {
                return health;
            }
        }
    })
    .await;
    let told = &heard.replicas[0];
    assert_eq!((told.roles.join(" ").as_str(), told.version.as_str()), ("admin worker", "1.2.3"));
    assert_eq!(told.pid, std::process::id());
    assert!(!told.host.is_empty() && told.started_at.is_some());
    let dependencies: Vec<_> =
        told.dependencies.iter().map(|on| (on.name.as_str(), on.ok, on.error.as_str())).collect();
    assert_eq!(dependencies, [("rock", true, ""), ("swamp", false, "It sinks.")]);
    assert_eq!((told.lags.len(), told.lags[0].service.as_str(), told.lags[0].unpublished), (1, "admin", 0));
}
