//! The tasks of the tests, for the worker process and for its children alike.

use std::hint::black_box;

use futures::future::BoxFuture;
use serde_json::{Value, json};
use worker::{Context, Ending, Failure, Level, Place, Registry, Task};

pub(crate) fn registry() -> Registry {
    let registry = Registry::new().with(Echo).with(Wait).with(Deaf).with(Spin).with(Hog).with(Pid).with(Copy);
    registry.with(Crash).with(Fan).with(Grow).with(Litter)
}

macro_rules! task {
    ($type:ident, $name:literal, $place:ident, |$context:ident, $args:ident| $body:expr) => {
        pub(crate) struct $type;
        impl Task for $type {
            fn name(&self) -> &'static str {
                $name
            }
            fn queue(&self) -> &'static str {
                "default"
            }
            fn description(&self) -> &'static str {
                "A task of the tests."
            }
            fn schema(&self) -> Value {
                json!({ "type": "object" })
            }
            fn place(&self) -> Place {
                Place::$place
            }
            fn run<'a>(&'a self, $context: &'a Context, $args: Value) -> BoxFuture<'a, Result<Ending, Failure>> {
                Box::pin(async move { $body })
            }
        }
    };
}

task!(Echo, "echo", Worker, |_context, args| Ok(Ending::Done(args)));

// Obeys a request to stop, and says that it runs.
task!(Wait, "wait", Worker, |context, _args| {
    context.progress(1.0, "waiting", "");
    context.stopping().await;
    Err(Failure::Stopped)
});

task!(Deaf, "deaf", Worker, |context, _args| {
    context.progress(1.0, "deaf", "");
    std::future::pending().await
});

// Burns a core, tells its process, and never looks up.
task!(Spin, "spin", Child, |context, _args| {
    context.progress(1.0, "spinning", std::process::id().to_string());
    loop {
        black_box(0);
    }
});

task!(Hog, "hog", Child, |context, args| {
    let mut held = Vec::new();
    for mib in 0..args["mib"].as_u64().unwrap_or(0) {
        context.progress(1.0, "eating", mib.to_string());
        held.push(black_box(vec![1_u8; 1024 * 1024]));
    }
    Ok(Ending::Done(json!({ "mib": held.len() })))
});

task!(Pid, "pid", Child, |_context, _args| Ok(Ending::Done(json!({ "pid": std::process::id() }))));

// Reads a file and stores it twice as long, from a child.
task!(Copy, "copy", Child, |context, args| {
    let input = context.fetch(args["file_id"].as_str().unwrap_or_default()).await?;
    #[expect(clippy::print_stdout, reason = "that is what is tested")]
    {
        println!("a task that prints does not disturb the frames");
    }
    context.log(Level::Info, format!("read {}", input.facts.name));
    let bytes = std::fs::read(&input.path)?;
    let path = context.scratch().join("twice");
    std::fs::write(&path, [bytes.as_slice(), bytes.as_slice()].concat())?;
    let stored = context.store(&path, "twice.bin", "application/octet-stream").await?;
    Ok(Ending::Done(json!({ "file_id": stored.file_id, "size_bytes": stored.size_bytes })))
});

task!(Crash, "crash", Child, |_context, args| {
    if args["panic"] == json!(true) {
        panic!("as asked");
    }
    #[expect(clippy::disallowed_methods, reason = "that is what is tested")]
    std::process::exit(3)
});

task!(Grow, "grow", Worker, |context, _args| {
    let sibling =
        |ordinal, after| worker::ChildJob { ordinal, task: "echo".to_owned(), args: json!({ "n": 7 }), after };
    let job_ids = context.add_siblings(vec![sibling(0, vec![]), sibling(3, vec![0])]).await?;
    Ok(Ending::Done(json!({ "job_ids": job_ids })))
});

task!(Fan, "fan", Worker, |context, _args| {
    let child = worker::ChildJob { ordinal: 0, task: "echo".to_owned(), args: json!({ "n": 0 }), after: Vec::new() };
    let finalize = worker::Finalize { task: "echo".to_owned(), args: json!({}), policy: worker::Policy::Always };
    Ok(Ending::AwaitBatch(context.fan_out(vec![child], &finalize).await?))
});

// Leaves a file where it works, in the worker's own process, and tells how many it has found there.
task!(Litter, "litter", Worker, |context, _args| {
    let found = std::fs::read_dir(context.scratch())?.count();
    std::fs::write(context.scratch().join("left"), "litter")?;
    Ok(Ending::Done(json!({ "found": found })))
});
