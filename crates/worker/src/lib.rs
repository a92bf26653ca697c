//! The runtime to build a worker on: the stream to jobs, slots, child processes, lifecycle hooks.
