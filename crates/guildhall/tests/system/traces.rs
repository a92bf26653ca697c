//! What happened because of one request is one trace, in a real collector's hands; and a collector that does not answer
//! holds up nothing.

use reqwest::Method;
use serde_json::{Value, json};

use opentelemetry_proto::tonic::trace::v1::span::SpanKind;

use crate::{
    collector::{Collector, Seen},
    house::House,
    person::{Person, answer},
    pictures,
    wait::SOON,
};

/// A browser's, with the span that the request was made in.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const BROWSERS_SPAN: &str = "00f067aa0ba902b7";

async fn post_traced(person: &Person, path: &str, body: &Value) -> Value {
    let request = person.request(Method::POST, path).await.json(body);
    answer(request.header("traceparent", format!("00-{TRACE}-{BROWSERS_SPAN}-01"))).await.expect(202)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_is_one_trace_from_the_browser_to_the_last_consumer() {
    let collector = Collector::open().await;
    let house = House::open_with(&[("otlp_endpoint", &collector.endpoint())]).await;
    let person = house.newcomer("ada").await;
    let file_id = person.upload(vec![("hers.png".to_owned(), pictures::small_png())]).await.remove(0);
    let jobs = json!([{ "task": "process_batch", "args": { "file_ids": [file_id] } }, { "task": "demo_fail", "args": { "times": 1 } }]);
    let batch = post_traced(&person, "/api/v1/batches", &json!({ "jobs": jobs })).await;
    let batch_id = batch["id"].as_str().expect("an id");
    for job in person.list(&format!("/api/v1/jobs?batch_id={batch_id}")).await {
        let job = person.finished(job["id"].as_str().expect("an id"), SOON).await;
        assert_eq!(job["state"], "succeeded", "{job:#}");
    }

    // The picture's own batch: the attempt that fans out, the model, the finalize; and the one that failed once.
    let spans = collector
        .trace(TRACE, |spans| {
            let attempts = |task: &str| spans.iter().filter(|span| span.name == format!("process {task}")).count();
            let published = spans.iter().filter(|span| span.name == "publish jobs.job.succeeded").count();
            attempts("process_batch") == 1
                && attempts("generate_3d_model") == 1
                && attempts("finalize_batch") == 1
                && attempts("demo_fail") == 2
                && published == 4
        })
        .await;
    let tree = Tree(&spans);

    // Down one side: browser, gateway, gRPC, the handing in, Postgres.
    let request = tree.only("POST /api/v1/batches");
    assert_eq!((request.parent.as_str(), request.kind), (BROWSERS_SPAN, SpanKind::Server));
    assert_eq!(request.attribute("http.request.method"), "POST");
    assert_eq!(request.attribute("http.route"), "/api/v1/batches");
    assert_eq!(request.attribute("http.response.status_code"), "202");
    let call = tree.only_below(request, "guildhall.jobs.v1.Batches/Create", SpanKind::Client);
    assert_eq!((call.attribute("rpc.system"), call.attribute("rpc.method")), ("grpc", "Create"));
    assert_eq!(call.attribute("rpc.grpc.status_code"), "0");
    let served = tree.only_below(call, "guildhall.jobs.v1.Batches/Create", SpanKind::Server);
    let sent = tree.only_below(served, "send jobs", SpanKind::Producer);
    let written = tree.only_below(sent, "jobs.create_batch", SpanKind::Client);
    assert_eq!(written.attribute("db.system.name"), "postgresql");
    assert!(request.began <= call.began && written.ended <= call.ended && call.ended <= request.ended);

    // And up the other: attempts and their transactions, what they hand in themselves, what is told of them.
    let parent = tree.only_below(sent, "process process_batch", SpanKind::Consumer);
    assert_eq!(parent.attribute("messaging.destination.name"), "batch_processing");
    assert!(written.ended <= parent.began, "it was claimed before it was durable");
    assert_eq!(tree.below(sent, "process demo_fail").len(), 2, "each attempt is a step of its own");
    assert!(!tree.below(sent, "jobs.claim").is_empty() && !tree.below(sent, "jobs.finish").is_empty());
    let fan_out = tree.only_below(parent, "guildhall.worker.v1.Attempts/FanOut", SpanKind::Client);
    let fanned = tree.only_below(fan_out, "guildhall.worker.v1.Attempts/FanOut", SpanKind::Server);
    let sent_by_it = tree.only_below(fanned, "send jobs", SpanKind::Producer);
    let model = tree.only_below(sent_by_it, "process generate_3d_model", SpanKind::Consumer);
    assert_eq!(model.attribute("guildhall.outcome"), "succeeded");
    tree.only_below(model, "guildhall.worker.v1.Attempts/GetFile", SpanKind::Client);
    tree.only_below(sent_by_it, "process finalize_batch", SpanKind::Consumer);
    let told = tree.below(sent, "publish jobs.job.submitted");
    assert_eq!(told.len(), 2, "each job was told of once");
    assert!(told.iter().all(|span| span.kind == SpanKind::Producer));

    assert!(spans.iter().all(|span| span.resource["service.name"] == "guildhall"));
    assert!(spans.iter().all(|span| span.parent == BROWSERS_SPAN || tree.find(&span.parent).is_some()));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_act_is_told_to_the_audit_log_in_the_trace_of_its_request() {
    let collector = Collector::open().await;
    let house = House::open_with(&[("otlp_endpoint", &collector.endpoint())]).await;
    let person = house.newcomer("ada").await;
    let job = person.submit("demo_sleep", json!({ "seconds": 60 })).await;
    post_traced(&person, &format!("/api/v1/jobs/{job}/cancel"), &json!({})).await;
    // What is told ends before the telling does: the consumer's step may be known before those above it.
    let spans = collector
        .trace(TRACE, |spans| {
            let is_there = |id: &str| id == BROWSERS_SPAN || spans.iter().any(|span| span.id == id);
            spans.iter().any(|span| span.name == "process jobs.act.recorded")
                && spans.iter().all(|span| is_there(&span.parent))
        })
        .await;
    let tree = Tree(&spans);
    let published = tree.only("publish jobs.act.recorded");
    let consumed = tree.only_below(published, "process jobs.act.recorded", SpanKind::Consumer);
    assert_eq!(consumed.attribute("messaging.destination.name"), "guildhall.events:jobs.act.recorded:guildhall.admin");
    let served = tree.find(&published.parent).expect("it is published below what it tells of");
    assert_eq!((served.name.as_str(), served.kind), ("guildhall.jobs.v1.Jobs/Cancel", SpanKind::Server));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_does_not_answer_holds_up_neither_work_nor_the_stop() {
    let collector = Collector::open().await;
    collector.stall();
    let house = House::open_with(&[("otlp_endpoint", &collector.endpoint()), ("log_filter", "info")]).await;
    let person = house.newcomer("ada").await;
    collector.holds_a_batch().await;
    // While it does not answer, work is done as ever.
    let job = person.submit("demo_echo", json!({ "value": 1 })).await;
    assert_eq!(person.finished(&job, SOON).await["state"], "succeeded");
    // It stops well, though the last spans have nowhere to go.
    house.close().await;
    assert!(collector.seen().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_chooses_neither_that_we_record_nor_that_we_do_not_serve() {
    let collector = Collector::open().await;
    let house = House::open_with(&[("otlp_endpoint", &collector.endpoint()), ("trace_ratio", "0")]).await;
    let person = house.newcomer("ada").await;
    let body = json!({ "jobs": [{ "task": "demo_echo", "args": { "value": 1 } }] });
    let batch = post_traced(&person, "/api/v1/batches", &body).await;
    let jobs = person.list(&format!("/api/v1/jobs?batch_id={}", batch["id"].as_str().expect("an id"))).await;
    person.finished(jobs[0]["id"].as_str().expect("an id"), SOON).await;
    // What there was to tell has been told when it has stopped.
    house.close().await;
    assert!(collector.seen().is_empty(), "{:#?}", collector.seen());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_of_the_log_tells_whose_request_and_which_attempt_it_belongs_to() {
    // Without a collector: the browser's trace is handed on all the same.
    let house = House::open_with(&[("log_filter", "info,worker=debug"), ("log_format", "json")]).await;
    let person = house.newcomer("ada").await;
    let job = post_traced(&person, "/api/v1/jobs", &json!({ "task": "demo_echo", "args": { "value": 1 } })).await;
    let job_id = job["id"].as_str().expect("an id");
    person.finished(job_id, SOON).await;
    let log = house.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect();
    let only = |message: &str| {
        let mut found = lines.iter().filter(|line| line["message"] == message && line["trace.id"] == TRACE);
        let line = found.next().unwrap_or_else(|| panic!("`{message}` of the trace in\n{log}"));
        assert!(found.next().is_none(), "`{message}` is told twice in\n{log}");
        line
    };
    let answered = only("answered a request");
    assert_eq!((&answered["http.route"], &answered["http.status"]), (&json!("/api/v1/jobs"), &json!(202)));
    let ended = only("an attempt has ended");
    assert_eq!((&ended["job.id"], &ended["job.attempt"]), (&json!(job_id), &json!(1)));
    for line in [answered, ended] {
        assert_eq!(line["user.id"], person.id.as_str());
        assert_eq!(line["request.id"], answered["request.id"]);
        assert_eq!(line["role"], "up");
    }
    house.close().await;
}

/// The spans of one trace.
struct Tree<'a>(&'a [Seen]);

impl<'a> Tree<'a> {
    fn find(&self, id: &str) -> Option<&'a Seen> {
        self.0.iter().find(|span| span.id == id)
    }

    fn only(&self, name: &str) -> &'a Seen {
        let found: Vec<_> = self.0.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "`{name}` among\n{self}");
        found[0]
    }

    fn below(&self, parent: &Seen, name: &str) -> Vec<&'a Seen> {
        self.0.iter().filter(|span| span.parent == parent.id && span.name == name).collect()
    }

    fn only_below(&self, parent: &Seen, name: &str, kind: SpanKind) -> &'a Seen {
        let found = self.below(parent, name);
        assert_eq!(found.len(), 1, "`{name}` below `{}` in\n{self}", parent.name);
        assert_eq!(found[0].kind, kind, "{:?}", found[0]);
        found[0]
    }

    fn print(&self, f: &mut std::fmt::Formatter<'_>, parent: &str, depth: usize) -> std::fmt::Result {
        for span in self.0.iter().filter(|span| span.parent == parent) {
            writeln!(f, "{:indent$}{} ({:?})", "", span.name, span.kind, indent = depth * 2)?;
            self.print(f, &span.id, depth + 1)?;
        }
        Ok(())
    }
}

impl std::fmt::Display for Tree<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.print(f, BROWSERS_SPAN, 0)?;
        let lost = self.0.iter().filter(|span| span.parent != BROWSERS_SPAN && self.find(&span.parent).is_none());
        for span in lost {
            writeln!(f, "no parent: {} ({:?})", span.name, span.kind)?;
        }
        Ok(())
    }
}
