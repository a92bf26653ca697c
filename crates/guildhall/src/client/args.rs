//! What the client commands take. The help that `--help` prints is written here, and nowhere else.

mod administration;
mod limits;
mod schedule;

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

pub(crate) use administration::{
    AuditArgs, AuditList, AuditVerb, EventArgs, EventVerb, HealthArgs, ParkedList, UserArgs, UserList, UserVerb,
};
pub(crate) use limits::{Bound, QueueLimit};
pub(crate) use schedule::{
    Manners, ScheduleArgs, ScheduleCreate, SchedulePreview, ScheduleUpdate, ScheduleVerb, Timing,
};

/// The commands that talk to a running Guildhall.
#[derive(Debug, Subcommand)]
pub(crate) enum ClientCommand {
    /// Sign in, and stay signed in for the commands below
    Login(LoginArgs),
    /// Sign out and forget the session
    Logout(LogoutArgs),
    /// Submit, watch, cancel and retry jobs
    Job(JobArgs),
    /// Make models of many pictures at once, and watch them being made
    Batch(BatchArgs),
    /// Upload, list, download and remove files
    File(FileArgs),
    /// Show what can be run, and limit it
    Task(TaskArgs),
    /// Show, pause, resume and limit queues
    Queue(QueueArgs),
    /// Submit jobs again and again, or at a later time
    Schedule(ScheduleArgs),
    /// Show the workers that are connected
    Worker(WorkerArgs),
    /// Find users, let them in or keep them out, and give them roles
    User(UserArgs),
    /// Read who did what
    Audit(AuditArgs),
    /// Show the events that could not be handled, and hand them to their consumers again
    Event(EventArgs),
    /// Show how every process fares; ends with 1 when not all is well
    Health(HealthArgs),
}

/// What every client command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Common {
    /// Where Guildhall is
    #[arg(long, global = true, env = "GUILDHALL_URL", default_value = "http://127.0.0.1:8080", value_name = "URL")]
    pub(crate) url: String,
    /// Print JSON: one document, or one line an event where something is watched
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Print ids alone, and nothing of what happens on the way
    #[arg(long, short, global = true, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    /// Who you are; asked for on a terminal. The password is asked for, or taken from GUILDHALL_PASSWORD, or read from
    /// standard input
    #[arg(long)]
    pub(crate) email: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: JobVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobVerb {
    /// Submit one job
    Submit(JobSubmit),
    /// List jobs, newest first
    List(JobList),
    /// Show one job
    Show { id: String },
    /// Follow a job to its end
    Watch { id: String },
    /// Ask a job to stop
    Cancel { id: String },
    /// Queue a job again that failed, expired or was cancelled
    Retry { id: String },
}

#[derive(Debug, Args)]
pub(crate) struct JobSubmit {
    /// What to run; `guildhall task list` shows what there is
    pub(crate) task: String,
    /// Its arguments: a JSON object, @FILE, or - for standard input
    #[arg(long, default_value = "{}", value_name = "JSON")]
    pub(crate) args: String,
    /// Another queue than the task's own
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// 0 to 100, higher first
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) priority: Option<u32>,
    /// Jobs of one key run one at a time, or as many as the queue says
    #[arg(long, value_name = "KEY")]
    pub(crate) concurrency_key: Option<String>,
    /// Not before this time, like 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) run_at: Option<DateTime<Utc>>,
    /// Attempts in all
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_attempts: Option<u32>,
    /// Seconds that one attempt may take
    #[arg(long, value_name = "SECONDS")]
    pub(crate) attempt_timeout: Option<f64>,
    /// Seconds that it may wait in its queue
    #[arg(long, value_name = "SECONDS")]
    pub(crate) queue_timeout: Option<f64>,
    /// Seconds that all attempts may take together
    #[arg(long, value_name = "SECONDS")]
    pub(crate) deadline: Option<f64>,
    /// A job that has to succeed before it starts; may be given several times
    #[arg(long, value_name = "ID")]
    pub(crate) after: Vec<String>,
    /// How those jobs have to end
    #[arg(long, requires = "after", value_parser = ["succeeded", "ended"])]
    pub(crate) after_needs: Option<String>,
    /// A word to find it by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    #[command(flatten)]
    pub(crate) unique: Uniqueness,
    /// Follow it to its end
    #[arg(long)]
    pub(crate) watch: bool,
}

/// How a job is one of its kind. What is not given is the server's to choose.
#[derive(Debug, Default, Args)]
pub(crate) struct Uniqueness {
    /// One of your jobs of this task holds the key; while another does, that one is told instead
    #[arg(long, value_name = "KEY")]
    pub(crate) unique_key: Option<String>,
    /// Hold the key until the job starts, until it is over, or also while it is a dead letter
    #[arg(long, requires = "unique_key", value_parser = ["waiting", "live", "dead_letter"])]
    pub(crate) unique_hold: Option<String>,
    /// Hold the key for so many seconds from now, whatever becomes of the job
    #[arg(long, requires = "unique_key", value_name = "SECONDS")]
    pub(crate) unique_window: Option<f64>,
    /// What to do while another job holds the key
    #[arg(long, requires = "unique_key", value_parser = ["return", "replace", "refuse"])]
    pub(crate) on_conflict: Option<String>,
    /// One of everyone's jobs holds the key
    #[arg(long, requires = "unique_key")]
    pub(crate) unique_for_all: bool,
}

#[derive(Debug, Args)]
pub(crate) struct JobList {
    /// Only those in this state; may be given several times
    #[arg(long = "state", value_name = "STATE")]
    pub(crate) states: Vec<String>,
    #[arg(long)]
    pub(crate) task: Option<String>,
    #[arg(long)]
    pub(crate) queue: Option<String>,
    #[arg(long)]
    pub(crate) tag: Option<String>,
    /// Only those of this batch
    #[arg(long, value_name = "ID")]
    pub(crate) batch: Option<String>,
    #[command(flatten)]
    pub(crate) page: PageArgs,
}

/// What part of a list.
#[derive(Debug, Args)]
pub(crate) struct PageArgs {
    /// At most so many, 1 to 200
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub(crate) limit: u32,
    /// Go on where a page ended
    #[arg(long)]
    pub(crate) cursor: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: BatchVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BatchVerb {
    /// Upload pictures and make a model of each
    Submit(BatchSubmit),
    /// List batches, newest first
    List(PageArgs),
    /// Show a batch and its jobs
    Show {
        /// Of the batch, or of the job that made it
        id: String,
    },
    /// Follow a batch to its end
    Watch(BatchWatch),
    /// Cancel what is not done yet; what is done stays
    Cancel {
        /// Of the batch, or of the job that made it
        id: String,
    },
    /// Queue what failed or expired again; the batch is finalized anew
    Retry {
        /// Of the batch, or of the job that made it
        id: String,
        /// Of the jobs that ended so, in place of failed and expired; may be given several times
        #[arg(long = "state", value_name = "STATE", value_parser = ["failed", "expired", "cancelled"])]
        states: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BatchSubmit {
    /// Pictures: PNG, JPEG, WebP or GIF
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Follow it to its end
    #[arg(long)]
    pub(crate) watch: bool,
    /// When done, put models, previews, contact sheet and manifest there; files of the same names are replaced
    #[arg(long, value_name = "DIR", requires = "watch")]
    pub(crate) out: Option<PathBuf>,
    /// Who makes the models
    #[arg(long, value_parser = ["relief"])]
    pub(crate) provider: Option<String>,
    #[command(flatten)]
    pub(crate) params: Params,
    /// 0 to 100, higher first
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) priority: Option<u32>,
    /// A word to find it by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
}

/// How the models are to be. What is not given is the provider's to choose.
#[derive(Debug, Default, Args)]
pub(crate) struct Params {
    /// Longest side of the model, millimetres: 10 to 1000
    #[arg(long, value_name = "MM")]
    pub(crate) size_mm: Option<f64>,
    /// Height of white over black, millimetres: 0.5 to 100
    #[arg(long, value_name = "MM")]
    pub(crate) depth_mm: Option<f64>,
    /// Thickness under black, millimetres: 0.5 to 50
    #[arg(long, value_name = "MM")]
    pub(crate) base_mm: Option<f64>,
    /// Points along the longest side: 16 to 1024
    #[arg(long, value_name = "COUNT")]
    pub(crate) samples: Option<u32>,
    /// 0 to 10, more is smoother
    #[arg(long, value_name = "STEPS")]
    pub(crate) smoothing: Option<u32>,
    /// Dark stands high
    #[arg(long)]
    pub(crate) invert: bool,
    /// Any other parameter of the provider; may be given several times
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub(crate) others: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchWatch {
    /// Of the batch, or of the job that made it
    pub(crate) id: String,
    /// When done, put models, previews, contact sheet and manifest there; files of the same names are replaced
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct FileArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: FileVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum FileVerb {
    /// Upload files
    Upload {
        #[arg(required = true, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// List files, newest first
    List(PageArgs),
    /// Download one file
    Download {
        id: String,
        /// Where to; its own name in this directory when not given, replacing a file of that name
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Remove files
    Remove {
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct TaskArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: TaskVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// List the tasks that a worker has offered and you may run
    List(PageArgs),
    /// Set how many jobs of a task may run at once; none takes the limit away
    Limit {
        name: String,
        #[arg(long, value_name = "COUNT")]
        concurrency: Bound<u32>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct QueueArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: QueueVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueVerb {
    /// List queues and how many jobs stand in them
    List,
    /// Hand out no more jobs of a queue
    Pause { name: String },
    /// Hand out its jobs again
    Resume { name: String },
    /// Set what it allows; what is left out stays, and none takes a limit away
    Limit(QueueLimit),
}

#[derive(Debug, Args)]
pub(crate) struct WorkerArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: WorkerVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerVerb {
    /// List connected workers and what they do
    List(PageArgs),
}
