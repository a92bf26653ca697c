//! The two processes of a node, each with a keeper of its own: the broker, and the port mapper by which `rabbitmqctl`
//! finds it. A mapper that died and came back is told of its node again by the node itself.

use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;

use super::node::Node;
use super::{EPMD, RABBITMQ};
use crate::private_server::keeper::{self, Restart};
use crate::private_server::log::Log;
use crate::private_server::{PlaceError, leftovers};

/// What outlives a killed broker for a moment. Its shells are no proof of being RabbitMQ's, and end with their input.
pub(super) const BROKER_PROGRAMS: [&str; 3] = ["beam.smp", "erl_child_setup", "inet_gethost"];
pub(super) const EPMD_PROGRAMS: [&str; 1] = ["epmd"];

#[derive(Debug)]
pub(super) struct Broker(pub(super) Arc<Node>, pub(super) Restart);

#[derive(Debug)]
pub(super) struct Epmd(pub(super) Arc<Node>, pub(super) Restart);

impl keeper::Server for Broker {
    fn name(&self) -> &str {
        RABBITMQ.name
    }

    fn restart(&self) -> Restart {
        self.1
    }

    fn log(&self) -> &Log {
        self.0.log()
    }

    fn command(&self) -> Command {
        self.0.broker()
    }

    fn clear(&self) -> Result<(), PlaceError> {
        leftovers::end(&self.0.state(), RABBITMQ.name, &BROKER_PROGRAMS, Signal::SIGKILL)
    }

    fn leave(self) {}
}

impl keeper::Server for Epmd {
    fn name(&self) -> &str {
        EPMD
    }

    fn restart(&self) -> Restart {
        self.1
    }

    fn log(&self) -> &Log {
        self.0.log()
    }

    fn command(&self) -> Command {
        self.0.epmd()
    }

    fn clear(&self) -> Result<(), PlaceError> {
        leftovers::end(&self.0.state(), RABBITMQ.name, &EPMD_PROGRAMS, Signal::SIGKILL)
    }

    fn leave(self) {}
}
