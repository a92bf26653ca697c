//! What the commands about schedules take.

use chrono::{DateTime, Utc};
use clap::{ArgGroup, Args, Subcommand};

use super::{Common, PageArgs, Uniqueness};

#[derive(Debug, Args)]
pub(crate) struct ScheduleArgs {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) verb: ScheduleVerb,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleVerb {
    /// Submit a job again and again, or once at a later time
    Create(Box<ScheduleCreate>),
    /// List schedules, newest first
    List(PageArgs),
    /// Show a schedule and its newest runs
    Show { id: String },
    /// Change what is given, and leave the rest as it is
    Update(Box<ScheduleUpdate>),
    /// Remove a schedule; its jobs go on
    Remove { id: String },
    /// Show when a timing comes due, with the odd hours marked
    Preview(SchedulePreview),
    /// Submit a schedule's job now
    Run { id: String },
    /// Let nothing of a schedule come due
    Pause {
        id: String,
        /// Why, shown with the schedule
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Let a schedule go on
    Resume { id: String },
    /// Run the occurrences of a past span that have not run
    Backfill {
        id: String,
        /// From this time on, like 2030-01-31T12:00:00Z
        #[arg(long, value_name = "TIME")]
        from: DateTime<Utc>,
        /// Until this time
        #[arg(long, value_name = "TIME")]
        until: DateTime<Utc>,
    },
}

/// When it comes due.
#[derive(Debug, Default, Args)]
#[command(group = ArgGroup::new("timing").args(["cron", "every", "at"]))]
pub(crate) struct Timing {
    /// Five fields, or six with the seconds first, like '0 9 * * MON-FRI'
    #[arg(long, value_name = "EXPRESSION")]
    pub(crate) cron: Option<String>,
    /// Every so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) every: Option<u32>,
    /// Where the seconds of --every are counted from; now when not given
    #[arg(long, value_name = "TIME", requires = "every")]
    pub(crate) anchor: Option<DateTime<Utc>>,
    /// Once, at this time, like 2030-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<DateTime<Utc>>,
    /// Whose clock --cron means, like Europe/Berlin; UTC when not given
    #[arg(long, value_name = "ZONE")]
    pub(crate) time_zone: Option<String>,
}

/// How it runs. What is not given is the server's to choose.
#[derive(Debug, Default, Args)]
pub(crate) struct Manners {
    /// A name to know it by
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// Another queue than the task's own
    #[arg(long)]
    pub(crate) queue: Option<String>,
    /// 0 to 100, higher first
    #[arg(long, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) priority: Option<u32>,
    /// Jobs of one key run one at a time, or as many as the queue says
    #[arg(long, value_name = "KEY")]
    pub(crate) concurrency_key: Option<String>,
    /// Attempts of each job
    #[arg(long, value_name = "COUNT")]
    pub(crate) max_attempts: Option<u32>,
    /// A word to find its jobs by; may be given several times
    #[arg(long = "tag", value_name = "TAG")]
    pub(crate) tags: Vec<String>,
    /// What becomes of occurrences that were missed
    #[arg(long, value_parser = ["skip", "once", "all"])]
    pub(crate) missed: Option<String>,
    /// Most that --missed all makes up for
    #[arg(long, value_name = "COUNT")]
    pub(crate) missed_max: Option<u32>,
    /// What becomes of an occurrence while a run is at work
    #[arg(long, value_parser = ["skip", "queue_one", "queue_all", "cancel_running", "allow"])]
    pub(crate) overlap: Option<String>,
    /// Most that wait under --overlap queue_all
    #[arg(long, value_name = "COUNT")]
    pub(crate) queue_max: Option<u32>,
    /// Hold each run back by up to so many seconds
    #[arg(long, value_name = "SECONDS")]
    pub(crate) jitter: Option<u32>,
    /// Pause it once so many runs in a row have failed
    #[arg(long, value_name = "COUNT")]
    pub(crate) pause_after_failures: Option<u32>,
    #[command(flatten)]
    pub(crate) unique: Uniqueness,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("when").args(["cron", "every", "at"]).required(true))]
pub(crate) struct ScheduleCreate {
    /// What to run; `guildhall task list` shows what there is
    pub(crate) task: String,
    /// Its arguments: a JSON object, @FILE, or - for standard input
    #[arg(long, default_value = "{}", value_name = "JSON")]
    pub(crate) args: String,
    #[command(flatten)]
    pub(crate) timing: Timing,
    #[command(flatten)]
    pub(crate) manners: Manners,
}

#[derive(Debug, Args)]
pub(crate) struct ScheduleUpdate {
    pub(crate) id: String,
    /// Another task
    #[arg(long)]
    pub(crate) task: Option<String>,
    /// Other arguments: a JSON object, @FILE, or - for standard input
    #[arg(long, value_name = "JSON")]
    pub(crate) args: Option<String>,
    #[command(flatten)]
    pub(crate) timing: Timing,
    #[command(flatten)]
    pub(crate) manners: Manners,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("when").args(["cron", "every", "at"]).required(true))]
pub(crate) struct SchedulePreview {
    #[command(flatten)]
    pub(crate) timing: Timing,
    /// So many, 1 to 100
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) count: u32,
    /// Those after this time; now when not given
    #[arg(long, value_name = "TIME")]
    pub(crate) after: Option<DateTime<Utc>>,
}
