//! The engine against scripted shards, over real sockets. Nothing here sleeps: every wait is for an event.

mod scripted_shard;

mod shards;
mod step_loop;
