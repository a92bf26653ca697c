//! A worker from its start to its end: what it is made of, and how it drains.

use std::{path::PathBuf, sync::Arc};

use kit::{
    Clock, Fail,
    grpc::{Credential, Peer},
    storage::Storage,
    tasks::Tasks,
};
use proto::worker::{Hello, OfferedTask};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Hooks, Profile, Registry, Settings, SlotCommand,
    attempt::Bench,
    hooks::AllHooks,
    lease::{Heartbeats, Lease},
    ledger::{Ledger, Order, Why},
    scratch::Scratch,
    settings::RECEIPTS_WITHIN,
    slot::{Launcher, Slot},
    stream::Stream,
};

/// What a worker is made of.
#[derive(Clone)]
pub struct Setup {
    pub settings: Settings,
    pub registry: Registry,
    /// The role that hands out work.
    pub jobs: Peer,
    /// Its scope holds `workers:connect`.
    pub credential: Credential,
    /// The object storage that gateway and workers share.
    pub storage: Storage,
    /// This worker's own; no other may use it at the time. Made when it is not there.
    pub scratch_dir: PathBuf,
    /// How to start the child process of a slot.
    pub slot_command: SlotCommand,
    pub clock: Clock,
    /// Called in this order around the worker and its tasks.
    pub hooks: Vec<Arc<dyn Hooks>>,
}

/// A running worker. It goes on when this is dropped, until its tasks are asked to stop.
#[derive(Debug, Clone)]
pub struct Worker {
    is_connected: watch::Receiver<bool>,
    ended: CancellationToken,
}

impl Worker {
    /// Starts a worker among `tasks`, whose soft signal makes it drain. It need not be able to connect yet.
    ///
    /// # Errors
    /// `worker.unknown_profile`, `worker.scratch`, `worker.scratch_in_use`; `internal` when no thread can be started.
    pub fn start(setup: Setup, tasks: &Tasks) -> Result<Self, Fail> {
        let settings = setup.settings;
        let profile = Profile::of(&settings)?;
        let scratch = Scratch::take(&setup.scratch_dir)?;
        let launcher = Launcher::start(setup.slot_command).map_err(Fail::internal)?;
        let slots = settings.slots();
        let hello = Hello {
            profile: profile.name.clone(),
            host: host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            slots,
            queues: profile.queues.clone(),
            tasks: offers(&setup.registry),
            worker_id: String::new(),
        };
        let (lease, ledger) = (Lease::default(), Ledger::default());
        let (draining, give_up, ended) = (tasks.stopping(), CancellationToken::new(), CancellationToken::new());
        let (sender, is_connected) = watch::channel(false);
        let hooks = AllHooks(setup.hooks.into());
        let bytes_max = settings.worker_slot_bytes_max.0;
        let free = (0..slots).map(|index| Ok(Slot::new(scratch.slot(index)?, launcher.clone(), bytes_max)));
        let stream = Stream {
            bench: Arc::new(Bench {
                registry: setup.registry,
                jobs: setup.jobs,
                credential: setup.credential,
                storage: setup.storage,
                clock: setup.clock,
                ledger: ledger.clone(),
                hooks: hooks.clone(),
                grace: settings.grace(),
            }),
            hello,
            lease: lease.clone(),
            tasks: tasks.clone(),
            draining: draining.clone(),
            give_up: give_up.clone(),
            is_connected: sender,
            free: free.collect::<Result<_, Fail>>()?,
            freed: mpsc::channel(slots as usize),
            heartbeats: Heartbeats::default(),
        };

        let has_ended = ended.clone();
        tasks.detach("worker.stream", async move {
            hooks.each(|hooks| hooks.before_worker(&profile));
            stream.run().await;
            hooks.each(|hooks| hooks.after_worker(&profile));
            has_ended.cancel();
            drop(scratch);
        });
        let (guarded, has_ended) = (ledger.clone(), ended.clone());
        tasks.detach("worker.lease", async move {
            tokio::select! {
                () = lease.guard(guarded) => {}
                () = has_ended.cancelled() => {}
            }
        });
        let has_ended = ended.clone();
        tasks.detach("worker.drain", async move {
            tokio::select! {
                () = drain(&settings, &ledger, &draining, &give_up) => {}
                () = has_ended.cancelled() => {}
            }
        });
        Ok(Self { is_connected, ended })
    }

    /// Whether `jobs` has welcomed the worker and its stream stands.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        *self.is_connected.borrow()
    }

    /// Waits until the stream stands.
    pub async fn connected(&mut self) {
        // A worker that has ended will not connect any more; whoever waits has been asked to stop too.
        drop(self.is_connected.wait_for(|is_connected| *is_connected).await);
    }

    /// Waits until the worker has drained and ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

/// Gives attempts their time to end, then gives them back, then stops waiting for word of it.
async fn drain(settings: &Settings, ledger: &Ledger, draining: &CancellationToken, give_up: &CancellationToken) {
    draining.cancelled().await;
    tokio::time::sleep(settings.drain()).await;
    ledger.order_all(Order { why: Why::Drain, grace: settings.grace() });
    tokio::time::sleep(settings.grace() + RECEIPTS_WITHIN).await;
    give_up.cancel();
}

fn offers(registry: &Registry) -> Vec<OfferedTask> {
    registry
        .iter()
        .map(|task| OfferedTask {
            name: task.name().to_owned(),
            queue: task.queue().to_owned(),
            schema_json: task.schema().to_string(),
            description: task.description().to_owned(),
        })
        .collect()
}

/// As the list of workers shows it.
fn host_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

impl std::fmt::Debug for Setup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Setup")
            .field("settings", &self.settings)
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}
