//! Schedules: when one comes due.

#![cfg_attr(not(test), expect(dead_code, reason = "nothing fires schedules yet"))]

mod cron;
mod occurrences;
mod zones;
