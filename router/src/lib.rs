//! The router: speaks HTTP and SSE to clients, owns every sequence, and drives the shards over gRPC.
//!
//! Read `generation.rs` first (the road of one request), then `engine/step_loop.rs` (the loop).
//! Imports point down this list, and `input`, `engine` and `output` do not see each other; `tests/layers.rs` checks both.

pub mod config;
pub mod engine;
pub mod generation;
pub mod http;
pub mod input;
pub mod output;
pub mod shard;
pub mod telemetry;
pub mod tokenizer;
pub mod types;

use std::process::ExitCode;

/// Runs `text-gen-router` with the process's arguments.
pub fn main() -> ExitCode {
    ExitCode::SUCCESS
}
