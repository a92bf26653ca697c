//! The durable job engine: queues, jobs, attempts, batches, workers and files.
