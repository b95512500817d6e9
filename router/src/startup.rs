//! From flags to a served model: reads the tokenizer, connects the shards, derives the limits, sizes the KV cache and builds the
//! engine. Each stage says what it waits for; a mistake ends it with one clear error.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use scheduler::SchedulerConfig;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Config;
use crate::config::limits::{final_limits, prepare_parameters, within_positions};
use crate::engine::{EngineHandle, StepLoop};
use crate::generation::Generator;
use crate::http::{self, App, ResponseStore};
use crate::shard::{KvCache, RunStreams, ShardGroup, ShardInfo};
use crate::supervision::Announced;
use crate::telemetry::{Buckets, MetricsHandle};
use crate::tokenizer::Tokenizer;
use crate::types::{Limits, ModelInfo, Tenant};

/// A model that can be served once its engine runs.
pub struct Loaded {
    pub app: App,
    pub step_loop: StepLoop,
}

/// What the shards have made ready.
struct PreparedShards {
    info: ShardInfo,
    limits: Limits,
    kv_cache: KvCache,
    streams: RunStreams,
}

/// Loads everything. `show_phase` is told what it waits for.
pub async fn load(
    config: &Config,
    mut announced: watch::Receiver<Announced>,
    show_phase: impl Fn(String),
    metrics: &MetricsHandle,
) -> anyhow::Result<Loaded> {
    let model_dir = model_dir(config, &mut announced).await?;
    show_phase("loading the model".to_string());
    let (tokenizer, shards) = tokio::try_join!(
        load_tokenizer(config, model_dir.clone()),
        prepare_shards(config, show_phase),
    )?;
    metrics
        .install(Buckets {
            max_input_tokens: shards.limits.max_input_tokens,
            max_total_tokens: shards.limits.max_total_tokens,
        })
        .context("cannot install the metrics recorder")?;
    http::metrics::describe();

    let scheduler = SchedulerConfig {
        num_blocks: shards.kv_cache.num_blocks,
        block_size: shards.kv_cache.block_size,
        max_batch_prefill_tokens: shards.limits.max_batch_prefill_tokens,
        max_batch_size: shards.limits.max_batch_size,
        prefix_caching: config.prefix_caching,
    };
    // All that may be open, and as many that took the place of some that left since the last step.
    let capacity = 2 * shards.limits.max_concurrent_requests;
    let (engine, step_loop) = StepLoop::new(scheduler, shards.streams, capacity);
    let announced = announced.borrow().clone();
    let model = model_info(config, &announced, &model_dir, &shards.info);
    let app = build_app(tokenizer, engine, model, shards.limits)?;
    Ok(Loaded { app, step_loop })
}

/// The folder given as a flag, or else the one that the launcher names.
async fn model_dir(
    config: &Config,
    announced: &mut watch::Receiver<Announced>,
) -> anyhow::Result<PathBuf> {
    if let Some(model_dir) = &config.model_dir {
        return Ok(model_dir.clone());
    }
    let named = announced.wait_for(|all| all.model_dir.is_some()).await;
    let named = named.context("the launcher named no model")?;
    named
        .model_dir
        .clone()
        .context("the launcher named no model")
}

/// Reading a tokenizer takes seconds of CPU, so it has a thread of its own.
async fn load_tokenizer(config: &Config, model_dir: PathBuf) -> anyhow::Result<Arc<Tokenizer>> {
    let tokenizer_config = config.tokenizer_config_path.clone();
    let load = move || Tokenizer::load(&model_dir, tokenizer_config.as_deref());
    let tokenizer = tokio::task::spawn_blocking(load).await??;
    Ok(Arc::new(tokenizer))
}

async fn prepare_shards(
    config: &Config,
    show_phase: impl Fn(String),
) -> anyhow::Result<PreparedShards> {
    let deadline = Instant::now() + config.shard_connect_timeout;
    let group = ShardGroup::connect(&config.shard_sockets, deadline).await?;
    let num_shards = config.shard_sockets.len();
    let show_loaded = |num_loaded| {
        show_phase(format!(
            "{num_loaded} of {num_shards} shards have loaded the model"
        ))
    };
    let info = group.info(deadline, show_loaded).await?;

    show_phase("sizing the KV cache".to_string());
    let (flags, warnings) = within_positions(config.limits.clone(), &info);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let parameters = prepare_parameters(&flags, &info);
    let deadline = Instant::now() + config.shard_connect_timeout;
    let kv_cache = group.prepare(&parameters, deadline).await?;
    let limits = final_limits(&flags, &info, &parameters, &kv_cache)?;
    tracing::info!(
        architecture = info.architecture,
        device = info.device_name,
        dtype = info.dtype,
        attention = info.attention,
        num_shards,
        num_blocks = kv_cache.num_blocks,
        block_size = kv_cache.block_size,
        kv_cache_bytes = kv_cache.kv_cache_bytes,
        max_input_tokens = limits.max_input_tokens,
        max_total_tokens = limits.max_total_tokens,
        max_batch_prefill_tokens = limits.max_batch_prefill_tokens,
        max_batch_size = limits.max_batch_size,
        "the shards are prepared"
    );
    Ok(PreparedShards {
        streams: group.run(info.vocab_size, parameters.max_batch_size),
        info,
        limits,
        kv_cache,
    })
}

fn model_info(
    config: &Config,
    announced: &Announced,
    model_dir: &Path,
    info: &ShardInfo,
) -> ModelInfo {
    let folder_name = || {
        let name = model_dir.file_name().unwrap_or(model_dir.as_os_str());
        name.to_string_lossy().into_owned()
    };
    ModelInfo {
        model_id: config
            .model_id
            .clone()
            .or_else(|| announced.model_id.clone())
            .unwrap_or_else(folder_name),
        revision: config
            .revision
            .clone()
            .or_else(|| announced.revision.clone()),
        is_demo: config.demo_model,
        dtype: info.dtype.clone(),
        device: info.device.clone(),
        vocab_size: info.vocab_size,
        max_model_len: info.max_model_len,
        num_shards: info.world_size,
    }
}

fn build_app(
    tokenizer: Arc<Tokenizer>,
    engine: EngineHandle,
    info: ModelInfo,
    limits: Limits,
) -> anyhow::Result<App> {
    if tokenizer.vocab_size() > info.vocab_size {
        bail!(
            "the tokenizer knows {} tokens, the model only {}",
            tokenizer.vocab_size(),
            info.vocab_size
        );
    }
    let generator = Generator::new(engine, tokenizer, limits, info.vocab_size);
    generator.prepare_grammars();
    Ok(App {
        generator,
        info: Arc::new(info),
        limits,
        tenant: Tenant::default(),
        responses: ResponseStore::default(),
    })
}
