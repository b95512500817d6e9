//! Every rank while it serves: one bidirectional stream each. A plan goes to all of them; its step is over when all have
//! answered. Rank 0's rows count, the others acknowledge. Whatever goes wrong on any rank is the loss of the group.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};
use prost::Message;
use scheduler::plan::{SequenceId, StepPlan, StepResult};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::codegen::Bytes;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use super::codec::PlanCodec;
use super::proto::StepResult as ProtoResult;
use super::{PlanMasks, ShardLost, convert, status_message};
use crate::types::TokenMask;

/// Plans that may wait for one rank. More than the engine ever has outstanding, so that sending never waits. Each may owe a mask for
/// each of its rows.
const PLAN_CAPACITY: usize = 4;

/// One step's outcome on all ranks.
#[derive(Debug)]
pub struct ShardStep {
    pub result: StepResult,
    /// Wall time of the step inside rank 0.
    pub compute: Duration,
}

/// The open `Run` streams, in rank order. Dropping them ends the streams.
pub struct RunStreams {
    ranks: Vec<RankStream>,
    vocab_size: u32,
}

struct RankStream {
    requests: mpsc::Sender<Bytes>,
    results: BoxStream<'static, Result<ProtoResult, Status>>,
    /// Answers that wait for the other ranks.
    received: VecDeque<ProtoResult>,
}

impl RunStreams {
    pub(super) fn open(
        channels: impl Iterator<Item = Channel>,
        vocab_size: u32,
        max_batch_size: u32,
    ) -> Self {
        let capacity = PLAN_CAPACITY * (1 + max_batch_size as usize);
        let open = |channel| RankStream::open(channel, capacity);
        Self {
            ranks: channels.map(open).collect(),
            vocab_size,
        }
    }

    /// Hands a plan to every rank without waiting. A rank that is gone is reported by `next_step`, which knows why.
    pub fn send(&mut self, plan: &StepPlan, masks: &PlanMasks) {
        let plan = Bytes::from(convert::plan_to_proto(plan, masks).encode_to_vec());
        for rank in &self.ranks {
            rank.send(plan.clone());
        }
    }

    /// Hands over a mask that a plan owed. Only rank 0 samples.
    pub fn send_late_mask(&mut self, step_id: u64, mask: &(SequenceId, TokenMask)) {
        let mask = Bytes::from(convert::late_mask_to_proto(step_id, mask).encode_to_vec());
        if let Some(rank) = self.ranks.first() {
            rank.send(mask);
        }
    }

    /// The next step's result, in the order of the plans. Also notices a loss while no plan is outstanding. Cancel safe.
    pub async fn next_step(&mut self) -> Result<ShardStep, ShardLost> {
        poll_fn(|context| self.poll_step(context)).await
    }

    fn poll_step(&mut self, context: &mut Context<'_>) -> Poll<Result<ShardStep, ShardLost>> {
        for (rank, stream) in self.ranks.iter_mut().enumerate() {
            // Read even from a rank that is ahead of the others, so that its loss is seen at once.
            while let Poll::Ready(item) = stream.results.poll_next_unpin(context) {
                let message = match item {
                    Some(Ok(result)) => {
                        stream.received.push_back(result);
                        continue;
                    }
                    Some(Err(status)) => status_message(&status),
                    None => "ended its stream".to_string(),
                };
                return Poll::Ready(Err(ShardLost { rank, message }));
            }
        }
        if self.ranks.iter().any(|rank| rank.received.is_empty()) {
            return Poll::Pending;
        }
        let ranks = self.ranks.iter_mut();
        let answers = ranks.filter_map(|rank| rank.received.pop_front()).collect();
        Poll::Ready(self.join(answers))
    }

    /// One step out of the answers of all ranks.
    fn join(&self, answers: Vec<ProtoResult>) -> Result<ShardStep, ShardLost> {
        let step_id = answers[0].step_id;
        if let Some(rank) = answers.iter().position(|answer| answer.step_id != step_id) {
            let message = format!(
                "answered step {}, shard 0 answered step {step_id}",
                answers[rank].step_id
            );
            return Err(ShardLost { rank, message });
        }
        let first = answers.into_iter().next().unwrap_or_default();
        let compute = Duration::from_micros(first.compute_us);
        let result = convert::result_from_proto(first, self.vocab_size)
            .map_err(|message| ShardLost { rank: 0, message })?;
        Ok(ShardStep { result, compute })
    }
}

impl RankStream {
    fn send(&self, request: Bytes) {
        let sent = self.requests.try_send(request);
        debug_assert!(
            !matches!(sent, Err(mpsc::error::TrySendError::Full(_))),
            "more outstanding than agreed"
        );
    }

    fn open(channel: Channel, capacity: usize) -> Self {
        let (requests, receiver) = mpsc::channel(capacity);
        let call = run_call(channel, ReceiverStream::new(receiver));
        Self {
            requests,
            // A server may hold its response headers back until its first answer, so opening is part of reading.
            results: call.try_flatten_stream().boxed(),
            received: VecDeque::new(),
        }
    }
}

/// The `Run` call with requests that are encoded already.
async fn run_call(
    channel: Channel,
    requests: ReceiverStream<Bytes>,
) -> Result<Streaming<ProtoResult>, Status> {
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client
        .ready()
        .await
        .map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/text_gen.shard.v1.Shard/Run");
    let response = client
        .streaming(Request::new(requests), path, PlanCodec)
        .await?;
    Ok(response.into_inner())
}
