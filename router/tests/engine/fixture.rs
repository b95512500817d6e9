//! A running engine over scripted shards, and how tests wait for what it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use scheduler::plan::SamplingParameters;
use scheduler::{FinishReason, SchedulerConfig, SequenceSpec};
use text_gen_router::engine::{
    EngineError, EngineHandle, Progress, StepLoop, TokenEvent, TokenStream,
};
use text_gen_router::shard::{PrepareParameters, ShardGroup};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::scripted_shard::{PATIENCE, Script, ScriptedShard, VOCAB_SIZE};

/// A running engine with its shards.
pub struct Fixture {
    _folder: tempfile::TempDir,
    pub shards: Vec<ScriptedShard>,
    pub engine: EngineHandle,
    task: JoinSet<Result<(), EngineError>>,
    stop: Option<oneshot::Sender<Instant>>,
}

impl Fixture {
    pub async fn start(scripts: Vec<Script>) -> Self {
        Self::start_with(scripts, 16).await
    }

    pub async fn start_with(scripts: Vec<Script>, max_batch_prefill_tokens: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |script| ScriptedShard::start(folder.path(), script);
        let shards: Vec<ScriptedShard> = scripts.into_iter().map(start).collect();
        let sockets: Vec<PathBuf> = shards.iter().map(|shard| shard.socket.clone()).collect();
        let deadline = Instant::now() + Duration::from_secs(20);
        let group = ShardGroup::connect(&sockets, deadline).await.unwrap();
        group.info(deadline, |_| ()).await.unwrap();
        let parameters = PrepareParameters {
            max_batch_prefill_tokens,
            max_batch_size: 8,
            max_total_tokens: 0,
            max_batch_total_tokens: 0,
            block_size: 0,
        };
        let kv_cache = group.prepare(&parameters, deadline).await.unwrap();
        let config = SchedulerConfig {
            num_blocks: kv_cache.num_blocks,
            block_size: kv_cache.block_size,
            max_batch_prefill_tokens: parameters.max_batch_prefill_tokens,
            max_batch_size: parameters.max_batch_size,
            prefix_caching: true,
        };
        let (engine, step_loop) = StepLoop::new(
            config,
            group.run(VOCAB_SIZE, parameters.max_batch_size),
            128,
        );
        let (stop, stopped) = oneshot::channel();
        let mut task = JoinSet::new();
        task.spawn(step_loop.run(async {
            match stopped.await {
                Ok(deadline) => deadline,
                Err(_) => std::future::pending().await,
            }
        }));
        Self {
            _folder: folder,
            shards,
            engine,
            task,
            stop: Some(stop),
        }
    }

    pub async fn one_shard(script: Script) -> Self {
        Self::start(vec![script]).await
    }

    pub fn submit(&self, prompt: &[u32], max_new_tokens: u32) -> TokenStream {
        self.engine
            .submit(spec(prompt, max_new_tokens), None)
            .unwrap()
    }

    /// Until no sequence is open and the shards owe nothing.
    pub async fn idle(&self) {
        let mut progress = self.engine.watch_progress();
        let is_idle = |progress: &Progress| {
            progress.num_queued + progress.num_running == 0 && progress.waiting_since.is_none()
        };
        reached(&mut progress, is_idle).await;
    }

    pub fn stop(&mut self, deadline: Instant) {
        self.stop.take().unwrap().send(deadline).unwrap();
    }

    pub async fn outcome(&mut self) -> Result<(), EngineError> {
        self.task.join_next().await.unwrap().unwrap()
    }
}

/// Waits until the engine is that far.
pub async fn reached(
    progress: &mut watch::Receiver<Progress>,
    is_reached: impl Fn(&Progress) -> bool,
) {
    let reached = timeout(PATIENCE, progress.wait_for(is_reached)).await;
    reached.expect("the engine never got there").unwrap();
}

pub fn spec(prompt: &[u32], max_new_tokens: u32) -> SequenceSpec {
    SequenceSpec {
        prompt: prompt.to_vec(),
        max_new_tokens,
        end_token_ids: Vec::new(),
        cache_salt: 0,
        read_prefix_cache: true,
        sampling: Arc::new(SamplingParameters::default()),
    }
}

/// Everything that a sequence produced, and how it ended.
pub async fn read(stream: &mut TokenStream) -> (Vec<u32>, Result<FinishReason, EngineError>) {
    let mut tokens = Vec::new();
    while let Some(event) = timeout(PATIENCE, stream.next())
        .await
        .expect("no event came")
    {
        match event {
            TokenEvent::Admitted { .. } | TokenEvent::PromptLogprobs(_) => (),
            TokenEvent::Failed(error) => return (tokens, Err(error)),
            TokenEvent::Token {
                token,
                finish_reason,
            } => {
                tokens.push(token.token_id);
                if let Some(reason) = finish_reason {
                    return (tokens, Ok(reason));
                }
            }
        }
    }
    panic!("the stream closed without a last event");
}
