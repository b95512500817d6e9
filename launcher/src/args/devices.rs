//! Flags about the devices: how many shards, on what, and how the device is used.

/// As typed; see `config`.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Devices")]
pub struct DeviceArgs {
    /// Number of shards: processes with one device each, between which the model is split [default: all visible GPUs, or 1]
    #[arg(long, env)]
    pub num_shard: Option<String>,

    /// Whether to split the model between devices: true, false. False means one shard, whatever --num-shard says
    #[arg(long, env)]
    pub sharded: Option<String>,

    /// Kind of device: auto, cpu, cuda
    #[arg(long, env, default_value = "auto")]
    pub device: String,

    /// Attention implementation of the shards [default: the fastest one that the device has]
    #[arg(long, env)]
    pub attention: Option<String>,

    /// Whether to reuse the KV cache of equal prefixes: true, false
    #[arg(long, env)]
    pub prefix_caching: Option<String>,

    /// Tokens in a block of the KV cache [default: the attention implementation's own]
    #[arg(long, env)]
    pub block_size: Option<String>,

    /// Part of the device's memory that may be used, above 0 and at most 1
    #[arg(long, env, default_value = "1.0")]
    pub cuda_memory_fraction: String,

    /// Batch sizes whose decode steps are replayed from CUDA graphs, with commas between them; 0 = none [default: chosen by
    /// the shards]. On a CPU there are none
    #[arg(long, env)]
    pub cuda_graphs: Option<String>,

    /// Executable to run as router
    #[arg(long, hide = true)]
    pub router_program: Option<std::path::PathBuf>,

    /// Executable to run as shard
    #[arg(long, hide = true)]
    pub server_program: Option<std::path::PathBuf>,
}
