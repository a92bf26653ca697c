//! The two processes of a node, each with a keeper of its own: the broker, and the port mapper by which `rabbitmqctl`
//! finds it. A mapper that died and came back is told of its node again by the node itself.

use std::process::Command;
use std::sync::Arc;

use nix::sys::signal::Signal;

use super::node::Node;
use super::{EPMD, RABBITMQ};
use crate::private_server::log::Log;
use crate::private_server::{PlaceError, Product, keeper, leftovers};

/// What outlives a killed broker for a moment. Its shells are no proof of being RabbitMQ's, and end with their input.
pub(super) const BROKER_PROGRAMS: [&str; 3] = ["beam.smp", "erl_child_setup", "inet_gethost"];
pub(super) const EPMD_PROGRAMS: [&str; 1] = ["epmd"];

#[derive(Debug)]
pub(super) struct Broker(pub(super) Arc<Node>);

#[derive(Debug)]
pub(super) struct Epmd(pub(super) Arc<Node>);

impl keeper::Server for Broker {
    fn product(&self) -> &'static Product {
        &RABBITMQ
    }

    fn log(&self) -> &Log {
        self.0.log()
    }

    fn command(&self) -> Command {
        self.0.broker()
    }

    fn clear(&self) -> Result<(), PlaceError> {
        leftovers::end(&self.0.state(), &RABBITMQ, &BROKER_PROGRAMS, Signal::SIGKILL)
    }

    fn leave(self) {}
}

impl keeper::Server for Epmd {
    fn product(&self) -> &'static Product {
        &EPMD
    }

    fn log(&self) -> &Log {
        self.0.log()
    }

    fn command(&self) -> Command {
        self.0.epmd()
    }

    fn clear(&self) -> Result<(), PlaceError> {
        leftovers::end(&self.0.state(), &EPMD, &EPMD_PROGRAMS, Signal::SIGKILL)
    }

    fn leave(self) {}
}
