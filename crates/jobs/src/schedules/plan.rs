//! What is to be done when a schedule has come due: which occurrences are late and made up for or not, and what a run at
//! work does to each. Pure functions of what is known; nothing here touches the database.

use std::collections::VecDeque;

use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{
    occurrences::Timing,
    spec::{Missed, Overlap},
};

/// An occurrence that nobody noticed for longer was missed; one that is noticed sooner runs, whatever becomes of missed ones.
/// Longer than a restart or the change of a leader takes.
const ON_TIME: TimeDelta = TimeDelta::seconds(60);
/// Occurrences looked at one by one. Of more, those in the middle are passed over.
const STEPS_MAX: u32 = 100_000;

/// What has come due since the schedule was looked at last.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Came {
    /// Occurrences that run, oldest first.
    pub(super) due: Vec<DateTime<Utc>>,
    /// Missed, and not made up for. A floor where so many came due that they were not all looked at.
    pub(super) missed: u64,
    pub(super) next: Option<DateTime<Utc>>,
}

/// The occurrences from `next` on that are due at `now`.
pub(super) fn came(timing: &Timing, next: DateTime<Utc>, now: DateTime<Utc>, missed: Missed) -> Came {
    let made_up_max = match missed {
        Missed::Skip => 0,
        Missed::Once => 1,
        Missed::All { at_most } => at_most,
    };
    let (mut late, mut on_time) = (VecDeque::new(), Vec::new());
    let mut came = Came { next: Some(next), ..Came::default() };
    let mut steps = 0;
    while let Some(at) = came.next.filter(|at| *at <= now) {
        if now - at > ON_TIME {
            late.push_back(at);
            if late.len() > made_up_max {
                late.pop_front();
                came.missed += 1;
            }
        } else {
            on_time.push(at);
        }
        came.next = timing.after(at);
        steps += 1;
        // The newest are what may have to be made up for: as long a span as this one, before the ones on time.
        let newest = now - ON_TIME - (at - next);
        if steps == STEPS_MAX && newest > at {
            came.next = timing.after(newest);
        }
    }
    // One run makes up for all, and there is one.
    if missed == Missed::Once && !on_time.is_empty() {
        came.missed += late.drain(..).count() as u64;
    }
    came.due = late.into_iter().chain(on_time).collect();
    came
}

/// What becomes of the occurrences that are to run.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Turns {
    pub(super) start: Vec<DateTime<Utc>>,
    pub(super) wait: Vec<DateTime<Utc>>,
    /// What waited before gives way.
    pub(super) drops_waiting: bool,
    /// Occurrences that do not run for another at work, those that gave way among them.
    pub(super) skipped: u64,
}

/// Gives each of `due` its turn, with so many runs at work and so many waiting.
pub(super) fn turns(overlap: Overlap, due: &[DateTime<Utc>], live: usize, waiting: usize) -> Turns {
    let mut turns = Turns::default();
    let mut waiting_before = waiting;
    for at in due {
        let waiting = waiting_before + turns.wait.len();
        let is_free = live + turns.start.len() + waiting == 0;
        match overlap {
            _ if is_free => turns.start.push(*at),
            Overlap::Allow => turns.start.push(*at),
            Overlap::Queue { at_most } if waiting < at_most => turns.wait.push(*at),
            Overlap::Skip | Overlap::Queue { .. } => turns.skipped += 1,
            Overlap::CancelRunning => {
                turns.skipped += waiting as u64;
                turns.drops_waiting |= std::mem::take(&mut waiting_before) > 0;
                turns.wait = vec![*at];
            }
        }
    }
    turns
}

/// The id of the job that runs an occurrence: the same from whichever replica, however often it is asked for. It is a UUIDv7
/// of the occurrence's time, so that what is kept of the job stands and leaves with that day's.
pub(super) fn job_id(schedule: Uuid, occurrence: DateTime<Utc>) -> Uuid {
    let digest = digest(schedule, occurrence);
    let millis = u64::try_from(occurrence.timestamp_millis()).unwrap_or(0);
    let mut chance = [0; 10];
    chance.copy_from_slice(&digest[..10]);
    uuid::Builder::from_unix_timestamp_millis(millis, &chance).into_uuid()
}

/// How long an occurrence is held back, of up to `jitter_s` seconds: always as long.
pub(super) fn jitter(schedule: Uuid, occurrence: DateTime<Utc>, jitter_s: u32) -> TimeDelta {
    let mut chance = [0; 8];
    chance.copy_from_slice(&digest(schedule, occurrence)[16..24]);
    let millis = u64::from_be_bytes(chance) % (u64::from(jitter_s) * 1000 + 1);
    TimeDelta::milliseconds(i64::try_from(millis).unwrap_or(0))
}

fn digest(schedule: Uuid, occurrence: DateTime<Utc>) -> [u8; 32] {
    Sha256::new()
        .chain_update(b"guildhall occurrence")
        .chain_update(schedule.as_bytes())
        .chain_update(occurrence.timestamp_micros().to_be_bytes())
        .finalize()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minute(minute: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::minutes(minute)
    }

    fn minutes(all: &[DateTime<Utc>]) -> Vec<i64> {
        all.iter().map(|at| (*at - minute(0)).num_minutes()).collect()
    }

    #[test]
    fn what_was_missed_is_made_up_for_as_said_and_the_rest_is_counted() {
        let hourly = Timing::Every { seconds: 3600, anchor: minute(0) };
        let came = |now, missed| {
            let came = super::came(&hourly, minute(0), minute(now), missed);
            (minutes(&came.due), came.missed, came.next.map(|at| (at - minute(0)).num_minutes()))
        };
        // Missed at 0, 60, 120 and 180.
        assert_eq!(came(200, Missed::Skip), (vec![], 4, Some(240)));
        assert_eq!(came(200, Missed::Once), (vec![180], 3, Some(240)));
        assert_eq!(came(200, Missed::All { at_most: 3 }), (vec![60, 120, 180], 1, Some(240)));
        assert_eq!(came(200, Missed::All { at_most: 100 }), (vec![0, 60, 120, 180], 0, Some(240)));
        // 180 is on time.
        assert_eq!(came(180, Missed::Skip), (vec![180], 3, Some(240)));
        assert_eq!(came(181, Missed::Once), (vec![180], 3, Some(240)));
        assert_eq!(came(181, Missed::All { at_most: 1 }), (vec![120, 180], 2, Some(240)));
        assert_eq!(super::came(&Timing::Once(minute(0)), minute(0), minute(500), Missed::Once).next, None);
    }

    #[test]
    fn after_years_the_newest_are_made_up_for_without_a_walk_over_all() {
        let secondly = Timing::Every { seconds: 1, anchor: minute(0) };
        let now = minute(0) + TimeDelta::days(3650);
        let came = came(&secondly, minute(0), now, Missed::All { at_most: 2 });
        let on_time = 61;
        assert_eq!(came.due.len(), 2 + on_time);
        assert_eq!((came.due[0], came.due[62]), (now - TimeDelta::seconds(62), now));
        assert_eq!(came.next, Some(now + TimeDelta::seconds(1)));
        assert!((100_000..300_000).contains(&came.missed), "{}", came.missed);
    }

    #[test]
    fn a_run_at_work_is_overlapped_as_said() {
        let due = [minute(1), minute(2), minute(3)];
        let turns = |overlap, live, waiting| {
            let turns = super::turns(overlap, &due, live, waiting);
            (minutes(&turns.start), minutes(&turns.wait), turns.drops_waiting, turns.skipped)
        };
        assert_eq!(turns(Overlap::Allow, 9, 0), (vec![1, 2, 3], vec![], false, 0));
        assert_eq!(turns(Overlap::Skip, 0, 0), (vec![1], vec![], false, 2));
        assert_eq!(turns(Overlap::Skip, 1, 0), (vec![], vec![], false, 3));
        assert_eq!(turns(Overlap::Queue { at_most: 1 }, 0, 0), (vec![1], vec![2], false, 1));
        assert_eq!(turns(Overlap::Queue { at_most: 1 }, 1, 1), (vec![], vec![], false, 3));
        assert_eq!(turns(Overlap::Queue { at_most: 5 }, 1, 3), (vec![], vec![1, 2], false, 1));
        assert_eq!(turns(Overlap::CancelRunning, 0, 0), (vec![1], vec![3], false, 1));
        assert_eq!(turns(Overlap::CancelRunning, 1, 1), (vec![], vec![3], true, 3));
    }

    #[test]
    fn an_occurrence_has_one_id_which_tells_its_time() {
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let id = job_id(one, minute(7));
        // Kept by value: another id for the same occurrence would run it again after an upgrade.
        assert_eq!(id.to_string(), "019254d9-e8a0-78d1-939b-46c39b3f8fac");
        assert_eq!(id.get_version_num(), 7);
        assert!(id != job_id(other, minute(7)) && id != job_id(one, minute(8)));
        let (seconds, nanos) = id.get_timestamp().expect("it has one").to_unix();
        assert_eq!(DateTime::from_timestamp(i64::try_from(seconds).expect("small"), nanos), Some(minute(7)));
    }

    #[test]
    fn jitter_is_an_occurrences_own_and_bounded() {
        let one = Uuid::from_u128(1);
        let held: Vec<TimeDelta> = (0..100).map(|n| jitter(one, minute(n), 10)).collect();
        assert!(held.iter().all(|held| (TimeDelta::zero()..=TimeDelta::seconds(10)).contains(held)));
        assert!(held.iter().filter(|held| **held < TimeDelta::seconds(5)).count() > 20);
        assert_eq!(jitter(one, minute(3), 10), held[3]);
        assert_eq!(jitter(one, minute(3), 0), TimeDelta::zero());
    }
}
