//! Every rank while it starts: connect, read what was loaded, size the KV cache. The ranks must agree on everything that the
//! router will rely on. Every wait has a deadline.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::try_join_all;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::proto::shard_client::ShardClient;
use super::proto::{InfoRequest, InfoResponse};
use super::run::RunStreams;
use super::{KvCache, PrepareParameters, ShardError, ShardInfo, convert, status_message};

const PROTOCOL_VERSION: u32 = 1;

/// Between two attempts to reach a shard that is still starting.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// All ranks, in rank order.
pub struct ShardGroup {
    ranks: Vec<Rank>,
}

struct Rank {
    rank: usize,
    socket: PathBuf,
    channel: Channel,
}

impl ShardGroup {
    /// Connects to every socket. A socket that is not there yet is tried again until `deadline`.
    pub async fn connect(sockets: &[PathBuf], deadline: Instant) -> Result<Self, ShardError> {
        let ranks = sockets
            .iter()
            .enumerate()
            .map(|(rank, socket)| connect_rank(rank, socket, deadline));
        let ranks = try_join_all(ranks).await?;
        Ok(Self { ranks })
    }

    /// What the shards loaded. Waits until all of them have. `progress` is told how many have whenever that changes.
    pub async fn info(
        &self,
        deadline: Instant,
        progress: impl Fn(usize),
    ) -> Result<ShardInfo, ShardError> {
        let num_loaded = AtomicUsize::new(0);
        let infos = self.ranks.iter().map(async |rank| {
            let info = info_of_rank(rank, deadline).await?;
            progress(num_loaded.fetch_add(1, Ordering::Relaxed) + 1);
            Ok(info)
        });
        let infos = try_join_all(infos).await?;
        check_infos(&infos)
    }

    /// Sizes and allocates the KV cache on all ranks at the same time, because they agree on its size among themselves.
    pub async fn prepare(
        &self,
        parameters: &PrepareParameters,
        deadline: Instant,
    ) -> Result<KvCache, ShardError> {
        let answers = self.ranks.iter().map(async |rank| {
            let mut client = ShardClient::new(rank.channel.clone());
            let call = client.prepare(convert::prepare_to_proto(parameters));
            let response = timeout_at(deadline, call)
                .await
                .map_err(|_| rank.failed("Prepare", "no answer before the deadline"))?
                .map_err(|status| rank.failed("Prepare", &status_message(&status)))?;
            Ok(convert::kv_cache_from_proto(response.into_inner()))
        });
        check_caches(&try_join_all(answers).await?)
    }

    /// Opens the streams on which plans of at most `max_batch_size` rows and their results travel.
    pub fn run(self, vocab_size: u32, max_batch_size: u32) -> RunStreams {
        let channels = self.ranks.into_iter().map(|rank| rank.channel);
        RunStreams::open(channels, vocab_size, max_batch_size)
    }
}

impl Rank {
    fn failed(&self, call: &'static str, message: &str) -> ShardError {
        ShardError::Call {
            rank: self.rank,
            call,
            message: message.to_string(),
        }
    }
}

async fn connect_rank(rank: usize, socket: &Path, deadline: Instant) -> Result<Rank, ShardError> {
    let started = Instant::now();
    loop {
        let attempt = timeout_at(deadline, connect_once(socket.to_path_buf())).await;
        let message = match attempt {
            Ok(Ok(channel)) => {
                return Ok(Rank {
                    rank,
                    socket: socket.to_path_buf(),
                    channel,
                });
            }
            Ok(Err(error)) => innermost_message(&error),
            Err(_) => "the connection was not accepted".to_string(),
        };
        if Instant::now() + RETRY_PAUSE >= deadline {
            return Err(ShardError::Unreachable {
                rank,
                socket: socket.to_path_buf(),
                waited: started.elapsed(),
                message,
            });
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn connect_once(socket: PathBuf) -> Result<Channel, tonic::transport::Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The name is never resolved; the connector decides where the bytes go.
    Endpoint::from_static("http://shard.invalid")
        .connect_with_connector(connector)
        .await
}

async fn info_of_rank(rank: &Rank, deadline: Instant) -> Result<InfoResponse, ShardError> {
    let mut client = ShardClient::new(rank.channel.clone());
    let started = Instant::now();
    let mut message = "no answer before the deadline".to_string();
    while let Ok(answer) = timeout_at(deadline, client.info(InfoRequest {})).await {
        match answer {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if status.code() == Code::Unavailable => {
                message = status_message(&status);
            }
            Err(status) => return Err(rank.failed("Info", &status_message(&status))),
        }
        if Instant::now() + RETRY_PAUSE >= deadline {
            break;
        }
        sleep(RETRY_PAUSE).await;
    }
    Err(ShardError::Unreachable {
        rank: rank.rank,
        waited: started.elapsed(),
        socket: rank.socket.clone(),
        message,
    })
}

fn check_infos(infos: &[InfoResponse]) -> Result<ShardInfo, ShardError> {
    let Some(first) = infos.first() else {
        return Err(ShardError::Mismatch("there are no shards".to_string()));
    };
    for (rank, info) in infos.iter().enumerate() {
        let mismatch = if info.protocol_version != PROTOCOL_VERSION {
            format!(
                "speaks protocol version {}, the router speaks {PROTOCOL_VERSION}",
                info.protocol_version
            )
        } else if info.rank as usize != rank {
            format!(
                "says that it is rank {}; give the sockets in rank order",
                info.rank
            )
        } else if info.world_size as usize != infos.len() {
            format!(
                "belongs to a group of {}, the router was given {} sockets",
                info.world_size,
                infos.len()
            )
        } else if info.model_fingerprint != first.model_fingerprint {
            format!(
                "loaded model {:?}, shard 0 loaded {:?}",
                info.model_fingerprint, first.model_fingerprint
            )
        } else if info.vocab_size != first.vocab_size || info.max_model_len != first.max_model_len {
            format!(
                "has a vocabulary of {} and {} positions, shard 0 has {} and {}",
                info.vocab_size, info.max_model_len, first.vocab_size, first.max_model_len
            )
        } else if info.vocab_size == 0 || info.max_model_len == 0 {
            "has an empty vocabulary or no positions".to_string()
        } else {
            continue;
        };
        return Err(ShardError::Mismatch(format!("shard {rank} {mismatch}")));
    }
    Ok(ShardInfo {
        server_version: first.server_version.clone(),
        model_fingerprint: first.model_fingerprint.clone(),
        architecture: first.architecture.clone(),
        device: first.device.clone(),
        device_name: first.device_name.clone(),
        dtype: first.dtype.clone(),
        attention: first.attention.clone(),
        world_size: infos.len(),
        vocab_size: first.vocab_size,
        max_model_len: first.max_model_len,
    })
}

fn check_caches(caches: &[KvCache]) -> Result<KvCache, ShardError> {
    let Some(&first) = caches.first() else {
        return Err(ShardError::Mismatch("there are no shards".to_string()));
    };
    if first.num_blocks == 0 || first.block_size == 0 {
        return Err(ShardError::Mismatch(format!(
            "shard 0 offers {} KV blocks of {} tokens",
            first.num_blocks, first.block_size
        )));
    }
    if first.num_blocks.checked_mul(first.block_size).is_none() {
        return Err(ShardError::Mismatch(format!(
            "{} KV blocks of {} tokens are more than a table can name",
            first.num_blocks, first.block_size
        )));
    }
    let shape = |cache: &KvCache| (cache.num_blocks, cache.block_size);
    match caches
        .iter()
        .position(|cache| shape(cache) != shape(&first))
    {
        None => Ok(first),
        Some(rank) => Err(ShardError::Mismatch(format!(
            "shard {rank} has {} KV blocks of {} tokens, shard 0 has {} of {}",
            caches[rank].num_blocks, caches[rank].block_size, first.num_blocks, first.block_size
        ))),
    }
}

/// The cause at the end of the chain ("no such file or directory"), which is what a reader can act on.
fn innermost_message(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
