//! The command lines of the other processes. Secrets travel in the environment of the one process that needs them, never in an
//! argument, which every user of the machine can read.

use std::path::Path;

use tokio::process::Command;

use crate::config::Config;
use crate::resolve::Model;
use crate::socket_dir::SocketDir;

/// Names under which the hub's library looks for a token. Only the search for the model gets them.
const HUB_TOKENS: [&str; 2] = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"];

pub fn router(config: &Config, sockets: &SocketDir) -> Command {
    let mut command = supervised(config, &config.programs.router);
    command.args([
        "--supervised",
        "--json-output",
        "--model-id",
        config.model.name(),
    ]);
    for rank in 0..config.num_shards {
        command
            .arg("--shard-socket")
            .arg(sockets.shard_socket(rank));
    }
    if config.model.is_demo() {
        command.arg("--demo-model");
    }
    command.args(&config.router_flags);
    if let Some(keys) = &config.api_keys {
        command.env("API_KEYS", keys.reveal());
    }
    without_hub_tokens(command)
}

pub fn resolve(config: &Config) -> Command {
    let model = &config.model;
    let mut command = supervised(config, &config.programs.server);
    // It draws with control characters, into a log.
    command.env("HF_HUB_DISABLE_PROGRESS_BARS", "1");
    let Some(model_id) = &model.model_id else {
        command.args(["demo-model", "--json-output"]);
        return without_hub_tokens(command);
    };
    let place = model.directory.as_deref().unwrap_or(Path::new(model_id));
    command
        .args(["resolve", "--json-output", "--model-id"])
        .arg(place);
    if let Some(revision) = &model.revision {
        command.args(["--revision", revision]);
    }
    if let Some(dir) = &model.cache_dir {
        command.arg("--cache-dir").arg(dir);
    }
    if let Some(token) = &model.hub_token {
        command.env("HF_TOKEN", token.reveal());
    }
    command
}

pub fn shard(config: &Config, sockets: &SocketDir, model: &Model, rank: usize) -> Command {
    let mut command = supervised(config, &config.programs.server);
    command
        .args(["serve", "--supervised", "--json-output", "--model-dir"])
        .arg(&model.model_dir);
    command.args([
        "--rank",
        &rank.to_string(),
        "--world-size",
        &config.num_shards.to_string(),
        "--socket",
    ]);
    command
        .arg(sockets.shard_socket(rank))
        .arg("--rendezvous-dir")
        .arg(sockets.rendezvous_dir());
    command.args(&config.shard_flags);
    without_hub_tokens(command)
}

/// A command that does not see the twins of the launcher's flags: it gets flags, and what is not a flag has its default.
fn supervised(config: &Config, program: &Path) -> Command {
    let mut command = Command::new(program);
    for twin in &config.twins {
        command.env_remove(twin);
    }
    command
}

fn without_hub_tokens(mut command: Command) -> Command {
    for name in HUB_TOKENS {
        command.env_remove(name);
    }
    command
}
