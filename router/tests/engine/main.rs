//! The engine against scripted shards, over real sockets. Nothing here sleeps: every wait is for an event.

// Helpers of tests may unwrap too.
#![allow(clippy::unwrap_used)]

mod fixture;
mod scripted_shard;

mod ends;
mod leaving;
mod masks;
mod shards;
mod steps;
