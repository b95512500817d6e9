//! A shard that computes nothing: it answers each plan after a set time with tokens that are words, and notes when.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use proto::row_result::Outcome;
use proto::shard_server::{Shard, ShardServer};

/// The generated server side of the contract.
#[allow(clippy::all, dead_code)]
mod proto {
    tonic::include_proto!("text_gen.shard.v1");
}

/// The model's tokens from here on are whole pieces of text.
pub const FIRST_TEXT_TOKEN: u32 = 300;
const VOCAB_SIZE: u32 = 2048;
const BLOCK_SIZE: u32 = 16;
const NUM_BLOCKS: u32 = 400_000;

/// When the shard saw one stream. Streams are told apart by the first token of their prompts.
#[derive(Clone, Default)]
pub struct Marks {
    pub planned_at: Option<Instant>,
    /// Of each token's result.
    pub sent_at: Vec<Instant>,
}

/// A running shard; dropping it ends it.
pub struct ScriptedShard {
    socket: PathBuf,
    state: Arc<State>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct State {
    step: Mutex<Duration>,
    marks: Mutex<Vec<Marks>>,
    waits: Mutex<Vec<Duration>>,
    tasks: Mutex<JoinSet<()>>,
}

impl ScriptedShard {
    /// Must be called inside a runtime.
    pub fn start(socket: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let state = Arc::new(State::default());
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&state)));
        Ok(Self {
            socket: socket.to_owned(),
            state,
            _server: server,
        })
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// How long each step takes from now on.
    pub fn set_step(&self, step: Duration) {
        *lock(&self.state.step) = step;
    }

    /// How long it waited for each plan that it could have begun with, since the last call.
    pub fn take_waits(&self) -> Vec<Duration> {
        std::mem::take(&mut lock(&self.state.waits))
    }

    /// What was noted since the last call, by stream.
    pub fn take_marks(&self) -> Vec<Marks> {
        std::mem::take(&mut lock(&self.state.marks))
    }
}

async fn accept(listener: UnixListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((connection, _)) = listener.accept().await {
        let service = ShardServer::from_arc(Arc::new(Service(Arc::clone(&state))));
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new()).http2_only();
            let service = TowerToHyperService::new(service);
            let _ = builder
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

struct Service(Arc<State>);

type Results = Pin<Box<dyn futures::Stream<Item = Result<proto::StepResult, Status>> + Send>>;

#[tonic::async_trait]
impl Shard for Service {
    async fn info(
        &self,
        _: Request<proto::InfoRequest>,
    ) -> Result<Response<proto::InfoResponse>, Status> {
        Ok(Response::new(proto::InfoResponse {
            protocol_version: 1,
            server_version: "0".to_string(),
            model_fingerprint: "scripted".to_string(),
            architecture: "scripted".to_string(),
            device: "cpu".to_string(),
            device_name: "cpu".to_string(),
            dtype: "float32".to_string(),
            attention: "none".to_string(),
            rank: 0,
            world_size: 1,
            vocab_size: VOCAB_SIZE,
            max_model_len: 8192,
        }))
    }

    async fn prepare(
        &self,
        _: Request<proto::PrepareRequest>,
    ) -> Result<Response<proto::PrepareResponse>, Status> {
        Ok(Response::new(proto::PrepareResponse {
            num_blocks: NUM_BLOCKS,
            block_size: BLOCK_SIZE,
            kv_cache_bytes: 0,
        }))
    }

    type RunStream = Results;

    async fn run(
        &self,
        request: Request<Streaming<proto::RunRequest>>,
    ) -> Result<Response<Results>, Status> {
        let (results, answers) = mpsc::channel(8);
        let state = Arc::clone(&self.0);
        lock(&self.0.tasks).spawn(answer(state, request.into_inner(), results));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn health(
        &self,
        _: Request<proto::HealthRequest>,
    ) -> Result<Response<proto::HealthResponse>, Status> {
        Ok(Response::new(proto::HealthResponse::default()))
    }
}

/// What is known of a running sequence.
struct Sequence {
    stream_idx: usize,
    num_uncomputed: u32,
    num_sampled: u32,
}

async fn answer(
    state: Arc<State>,
    mut plans: Streaming<proto::RunRequest>,
    results: mpsc::Sender<Result<proto::StepResult, Status>>,
) {
    let mut sequences: HashMap<u64, Sequence> = HashMap::new();
    let mut done_at = Instant::now();
    while let Ok(Some(message)) = plans.message().await {
        let Some(proto::run_request::Request::Plan(plan)) = message.request else {
            continue;
        };
        let began_at = Instant::now();
        // Not where the router had nothing to ask for: then the sequences are new.
        if !sequences.is_empty() && !plan.rows.is_empty() {
            lock(&state.waits).push(began_at.duration_since(done_at));
        }
        admit(&state, &plan, &mut sequences);
        let rows = execute(&plan, &mut sequences);
        let step = *lock(&state.step);
        if !step.is_zero() {
            tokio::time::sleep_until((began_at + step).into()).await;
        }
        done_at = Instant::now();
        note(&state, &rows, &sequences, done_at);
        let result = proto::StepResult {
            step_id: plan.step_id,
            rows,
            compute_us: 1,
        };
        if results.send(Ok(result)).await.is_err() {
            return;
        }
    }
}

fn note(
    state: &State,
    rows: &[proto::RowResult],
    sequences: &HashMap<u64, Sequence>,
    sent_at: Instant,
) {
    let mut marks = lock(&state.marks);
    for row in rows {
        let known = sequences.get(&row.sequence_id);
        if let Some(marks) = known.and_then(|known| marks.get_mut(known.stream_idx)) {
            marks.sent_at.push(sent_at);
        }
    }
}

fn admit(state: &State, plan: &proto::StepPlan, sequences: &mut HashMap<u64, Sequence>) {
    let arrived_at = Instant::now();
    for id in &plan.forget {
        sequences.remove(id);
    }
    let mut marks = lock(&state.marks);
    for new in &plan.new_sequences {
        let stream_idx = (new.token_ids[0] - FIRST_TEXT_TOKEN) as usize;
        if marks.len() <= stream_idx {
            marks.resize(stream_idx + 1, Marks::default());
        }
        marks[stream_idx].planned_at.get_or_insert(arrived_at);
        let sequence = Sequence {
            stream_idx,
            num_uncomputed: new.token_ids.len() as u32 - new.num_computed_tokens,
            num_sampled: 0,
        };
        sequences.insert(new.sequence_id, sequence);
    }
}

/// A token for each row that reaches the end of what its sequence knows.
fn execute(
    plan: &proto::StepPlan,
    sequences: &mut HashMap<u64, Sequence>,
) -> Vec<proto::RowResult> {
    let mut rows = Vec::with_capacity(plan.rows.len());
    for row in &plan.rows {
        let Some(sequence) = sequences.get_mut(&row.sequence_id) else {
            continue;
        };
        sequence.num_uncomputed -= row.num_scheduled_tokens;
        if sequence.num_uncomputed > 0 {
            continue;
        }
        sequence.num_uncomputed = 1;
        sequence.num_sampled += 1;
        let spread = sequence.num_sampled * 37 + sequence.stream_idx as u32 * 101;
        let token = proto::SampledToken {
            token_id: FIRST_TEXT_TOKEN + spread % (VOCAB_SIZE - FIRST_TEXT_TOKEN),
            logprob: -1.5,
            top_tokens: Vec::new(),
        };
        rows.push(proto::RowResult {
            sequence_id: row.sequence_id,
            outcome: Some(Outcome::Token(token)),
            prompt_logprobs: Vec::new(),
        });
    }
    rows
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
