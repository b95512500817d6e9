//! A shard that computes nothing but follows the contract: a gRPC server on a unix socket that keeps mirrors and a KV memory,
//! refuses every plan that breaks a rule, and does what the test tells it (hold its answers, fail, die).
//!
//! Its KV memory holds token ids. The next token is a function of what the memory says about all earlier positions, so a wrong or
//! stale block gives wrong tokens.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use proto::row_result::Outcome;
use proto::shard_server::{Shard, ShardServer};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// The generated server side of the contract.
#[allow(clippy::all, dead_code)]
pub mod proto {
    tonic::include_proto!("text_gen.shard.v1");
}

/// How long a test waits for an event before it fails. Far above what any needs.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub const VOCAB_SIZE: u32 = 1000;
pub const BLOCK_SIZE: u32 = 4;

/// The token that follows `tokens`.
pub fn next_token(tokens: &[u32]) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &token in tokens {
        hash = (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash >> 20) as u32 % VOCAB_SIZE
}

/// The `n` tokens that follow `prompt`.
pub fn continuation(prompt: &[u32], n: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..n {
        tokens.push(next_token(&tokens));
    }
    tokens.split_off(prompt.len())
}

/// What the shard says of itself.
#[derive(Clone)]
pub struct Script {
    pub rank: u32,
    pub world_size: u32,
    pub fingerprint: String,
    pub protocol_version: u32,
    pub num_blocks: u32,
    /// Answers wait for `release`.
    pub held: bool,
    /// Refuses this step.
    pub fails_at_step: Option<u64>,
    /// What a step is said to take for each of its tokens, in microseconds.
    pub compute_us_per_token: u64,
    /// The logits of these sequences are not finite.
    pub numerical_errors: Vec<u64>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            rank: 0,
            world_size: 1,
            fingerprint: "tiny".to_string(),
            protocol_version: 1,
            num_blocks: 64,
            held: false,
            fails_at_step: None,
            compute_us_per_token: 1,
            numerical_errors: Vec::new(),
        }
    }
}

/// The test's end of a running shard. Dropping it kills the shard.
pub struct ScriptedShard {
    pub socket: PathBuf,
    state: Arc<State>,
    num_arrived: watch::Receiver<usize>,
    server: JoinSet<()>,
}

struct State {
    script: Script,
    /// One permit for each step that may be answered.
    answers: Semaphore,
    arrived: Mutex<Vec<proto::StepPlan>>,
    num_arrived: watch::Sender<usize>,
    /// Those that came after their plans, by step and sequence.
    masks: watch::Sender<HashMap<(u64, u64), Vec<u8>>>,
    mirrors: Mutex<Mirrors>,
    tasks: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct Mirrors {
    sequences: HashMap<u64, Mirror>,
    /// Token written in each slot.
    kv: HashMap<u32, u32>,
    last_step_id: u64,
}

struct Mirror {
    tokens: Vec<u32>,
    prompt_len: usize,
    num_computed: usize,
    blocks: Vec<u32>,
    prompt_logprobs: bool,
}

impl ScriptedShard {
    pub fn start(folder: &Path, script: Script) -> Self {
        let socket = folder.join(format!("shard-{}", script.rank));
        let listener = UnixListener::bind(&socket).unwrap();
        let (num_arrived, watch_arrived) = watch::channel(0);
        let permits = if script.held {
            0
        } else {
            Semaphore::MAX_PERMITS / 2
        };
        let state = Arc::new(State {
            script,
            answers: Semaphore::new(permits),
            arrived: Mutex::default(),
            num_arrived,
            masks: watch::channel(HashMap::new()).0,
            mirrors: Mutex::default(),
            tasks: Mutex::default(),
        });
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&state)));
        Self {
            socket,
            state,
            num_arrived: watch_arrived,
            server,
        }
    }

    /// Lets a held shard answer `n` more steps.
    pub fn release(&self, n: usize) {
        self.state.answers.add_permits(n);
    }

    /// Lets a held shard answer everything from now on.
    pub fn release_all(&self) {
        self.release(Semaphore::MAX_PERMITS / 2);
    }

    /// The plans so far, once there are `n`.
    pub async fn plans(&mut self, n: usize) -> Vec<proto::StepPlan> {
        let arrived = self.num_arrived.wait_for(|&arrived| arrived >= n);
        let arrived = tokio::time::timeout(PATIENCE, arrived).await;
        arrived.expect("the plan never came").unwrap();
        self.state.arrived.lock().unwrap().clone()
    }

    /// The mask that came after its plan, once it has.
    pub async fn late_mask(&self, step_id: u64, sequence_id: u64) -> Vec<u8> {
        let mut masks = self.state.masks.subscribe();
        let key = (step_id, sequence_id);
        let arrived = masks.wait_for(|masks| masks.contains_key(&key));
        let arrived = tokio::time::timeout(PATIENCE, arrived).await;
        arrived.expect("the mask never came").unwrap()[&key].clone()
    }

    /// How often a sequence was given in full.
    pub fn num_times_new(&self, sequence_id: u64) -> usize {
        let arrived = self.state.arrived.lock().unwrap();
        let new = arrived.iter().flat_map(|plan| &plan.new_sequences);
        new.filter(|new| new.sequence_id == sequence_id).count()
    }

    pub fn num_plans(&self) -> usize {
        *self.num_arrived.borrow()
    }

    pub fn num_sequences(&self) -> usize {
        self.state.mirrors.lock().unwrap().sequences.len()
    }

    /// Cuts every connection, as a killed process does.
    pub async fn die(mut self) {
        self.state.tasks.lock().unwrap().abort_all();
        self.server.shutdown().await;
    }
}

async fn accept(listener: UnixListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (connection, _) = listener.accept().await.unwrap();
        let service =
            TowerToHyperService::new(ShardServer::from_arc(Arc::new(Service(Arc::clone(&state)))));
        connections.spawn(async move {
            let builder = Builder::new(TokioExecutor::new()).http2_only();
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
        let script = &self.0.script;
        Ok(Response::new(proto::InfoResponse {
            protocol_version: script.protocol_version,
            server_version: "0".to_string(),
            model_fingerprint: script.fingerprint.clone(),
            architecture: "scripted".to_string(),
            device: "cpu".to_string(),
            device_name: "cpu".to_string(),
            dtype: "float32".to_string(),
            attention: "none".to_string(),
            rank: script.rank,
            world_size: script.world_size,
            vocab_size: VOCAB_SIZE,
            max_model_len: 2048,
        }))
    }

    async fn prepare(
        &self,
        _: Request<proto::PrepareRequest>,
    ) -> Result<Response<proto::PrepareResponse>, Status> {
        Ok(Response::new(proto::PrepareResponse {
            num_blocks: self.0.script.num_blocks,
            block_size: BLOCK_SIZE,
            kv_cache_bytes: 0,
        }))
    }

    type RunStream = Results;

    async fn run(
        &self,
        request: Request<Streaming<proto::RunRequest>>,
    ) -> Result<Response<Results>, Status> {
        let (plans, waiting) = mpsc::channel(8);
        let (results, answers) = mpsc::channel(8);
        let mut tasks = self.0.tasks.lock().unwrap();
        tasks.spawn(receive(Arc::clone(&self.0), request.into_inner(), plans));
        tasks.spawn(answer(Arc::clone(&self.0), waiting, results));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }

    async fn health(
        &self,
        _: Request<proto::HealthRequest>,
    ) -> Result<Response<proto::HealthResponse>, Status> {
        let mirrors = self.0.mirrors.lock().unwrap();
        Ok(Response::new(proto::HealthResponse {
            last_step_id: mirrors.last_step_id,
            num_sequences: mirrors.sequences.len() as u32,
        }))
    }
}

/// Notes plans as they arrive, while earlier ones may still be held.
async fn receive(
    state: Arc<State>,
    mut stream: Streaming<proto::RunRequest>,
    plans: mpsc::Sender<proto::StepPlan>,
) {
    while let Ok(Some(message)) = stream.message().await {
        let plan = match message.request.unwrap() {
            proto::run_request::Request::Plan(plan) => plan,
            proto::run_request::Request::LateMasks(late) => {
                for mask in late.masks {
                    state.masks.send_modify(|masks| {
                        masks.insert((late.step_id, mask.sequence_id), mask.allowed);
                    });
                }
                continue;
            }
        };
        state.arrived.lock().unwrap().push(plan.clone());
        state.num_arrived.send_modify(|arrived| *arrived += 1);
        if plans.send(plan).await.is_err() {
            return;
        }
    }
}

async fn answer(
    state: Arc<State>,
    mut plans: mpsc::Receiver<proto::StepPlan>,
    results: mpsc::Sender<Result<proto::StepResult, Status>>,
) {
    while let Some(plan) = plans.recv().await {
        state.answers.acquire().await.unwrap().forget();
        let result = if state.script.fails_at_step == Some(plan.step_id) {
            Err("out of memory".to_string())
        } else {
            let masks = state.masks_of(&plan).await;
            let mut mirrors = state.mirrors.lock().unwrap();
            mirrors.execute(&plan, &masks, &state.script)
        };
        if results
            .send(result.map_err(Status::internal))
            .await
            .is_err()
        {
            return;
        }
    }
}

/// What sequences may sample in a step; any token where nothing is said.
type Masks = HashMap<u64, Vec<u8>>;

impl State {
    /// All masks of a plan, once they are there.
    async fn masks_of(&self, plan: &proto::StepPlan) -> Masks {
        let mut masks: Masks = HashMap::new();
        for mask in &plan.masks {
            masks.insert(mask.sequence_id, mask.allowed.clone());
        }
        let missing = |row: &&proto::Row| row.masked && !masks.contains_key(&row.sequence_id);
        let rows = plan.rows.iter().filter(missing);
        let missing: Vec<u64> = rows.map(|row| row.sequence_id).collect();
        if self.script.rank == 0 {
            let mut late = self.masks.subscribe();
            let step_id = plan.step_id;
            let late = late
                .wait_for(|late| missing.iter().all(|id| late.contains_key(&(step_id, *id))))
                .await
                .unwrap();
            masks.extend(
                missing
                    .iter()
                    .map(|id| (*id, late[&(step_id, *id)].clone())),
            );
        }
        masks
    }
}

/// The first token from `token` on that the mask allows.
fn allowed_from(token: u32, mask: &[u8]) -> u32 {
    let is_allowed = |id: &u32| mask.is_empty() || mask[*id as usize / 8] >> (id % 8) & 1 == 1;
    (token..VOCAB_SIZE)
        .chain(0..token)
        .find(is_allowed)
        .unwrap()
}

impl Mirrors {
    fn execute(
        &mut self,
        plan: &proto::StepPlan,
        masks: &Masks,
        script: &Script,
    ) -> Result<proto::StepResult, String> {
        if self.last_step_id != 0 && plan.step_id != self.last_step_id + 1 {
            return Err(format!(
                "step {} follows {}",
                plan.step_id, self.last_step_id
            ));
        }
        self.last_step_id = plan.step_id;
        for id in &plan.forget {
            self.sequences
                .remove(id)
                .ok_or(format!("{id} is not known"))?;
        }
        for new in &plan.new_sequences {
            let sampling = new.sampling.as_ref().ok_or("no sampling parameters")?;
            let mirror = Mirror {
                tokens: new.token_ids.clone(),
                prompt_len: new.prompt_len as usize,
                num_computed: new.num_computed_tokens as usize,
                blocks: Vec::new(),
                prompt_logprobs: sampling.prompt_logprobs,
            };
            if self.sequences.insert(new.sequence_id, mirror).is_some() {
                return Err(format!("{} is known already", new.sequence_id));
            }
        }
        let tokens = plan.rows.iter().map(|row| row.num_scheduled_tokens);
        let num_tokens: u64 = tokens.map(u64::from).sum();
        let mut rows = Vec::new();
        for row in &plan.rows {
            let mask = masks.get(&row.sequence_id).map_or(&[][..], Vec::as_slice);
            rows.extend(self.execute_row(row, mask, script)?);
        }
        Ok(proto::StepResult {
            step_id: plan.step_id,
            rows: if script.rank == 0 { rows } else { Vec::new() },
            compute_us: num_tokens * script.compute_us_per_token,
        })
    }

    fn execute_row(
        &mut self,
        row: &proto::Row,
        mask: &[u8],
        script: &Script,
    ) -> Result<Option<proto::RowResult>, String> {
        let id = row.sequence_id;
        let sequence = self
            .sequences
            .get_mut(&id)
            .ok_or(format!("{id} is not known"))?;
        if row
            .new_block_ids
            .iter()
            .any(|&block| block >= script.num_blocks)
        {
            return Err(format!("{id} was given a block that does not exist"));
        }
        sequence.blocks.extend(&row.new_block_ids);
        let start = sequence.num_computed;
        let end = start + row.num_scheduled_tokens as usize;
        if end == start || end > sequence.tokens.len() {
            return Err(format!(
                "{id} cannot compute {start}..{end} of {} tokens",
                sequence.tokens.len()
            ));
        }
        let slot = |position: usize| -> Result<u32, String> {
            let block = sequence.blocks.get(position / BLOCK_SIZE as usize);
            let block = block.ok_or(format!("{id} has no block for position {position}"))?;
            Ok(block * BLOCK_SIZE + position as u32 % BLOCK_SIZE)
        };
        for position in start..end {
            self.kv.insert(slot(position)?, sequence.tokens[position]);
        }
        let history: Result<Vec<u32>, String> = (0..end)
            .map(|position| Ok(self.kv.get(&slot(position)?).copied().unwrap_or(u32::MAX)))
            .collect();
        let history = history?;
        sequence.num_computed = end;
        let prompt_logprobs: Vec<f32> = (start.max(1)..end.min(sequence.prompt_len))
            .filter(|_| sequence.prompt_logprobs)
            .map(|position| -(position as f32))
            .collect();
        let outcome = if end < sequence.tokens.len() {
            None
        } else {
            let token_id = allowed_from(next_token(&history), mask);
            // Also after an error, because the next plan may be here already and has a row for it.
            sequence.tokens.push(token_id);
            Some(if script.numerical_errors.contains(&id) {
                Outcome::Error(proto::RowError::Numerical.into())
            } else {
                Outcome::Token(proto::SampledToken {
                    token_id,
                    logprob: -0.5,
                    top_tokens: Vec::new(),
                })
            })
        };
        if outcome.is_none() && prompt_logprobs.is_empty() {
            return Ok(None);
        }
        Ok(Some(proto::RowResult {
            sequence_id: id,
            outcome,
            prompt_logprobs,
        }))
    }
}
