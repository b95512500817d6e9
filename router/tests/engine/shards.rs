//! How a group of shards starts, and what it refuses.

use std::path::PathBuf;
use std::time::Duration;

use text_gen_router::shard::{KvCache, PrepareParameters, ShardGroup};
use tokio::time::Instant;

use crate::scripted_shard::{BLOCK_SIZE, Script, ScriptedShard, VOCAB_SIZE};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn parameters() -> PrepareParameters {
    PrepareParameters {
        max_batch_prefill_tokens: 16,
        max_batch_size: 4,
        max_total_tokens: 0,
        max_batch_total_tokens: 0,
        block_size: 0,
    }
}

/// Starts two shards of a group, the second as told, and gives the error that the group fails with.
async fn refusal(second: Script) -> String {
    let folder = tempfile::tempdir().unwrap();
    let first = Script {
        world_size: 2,
        ..Script::default()
    };
    let shards = [
        ScriptedShard::start(folder.path(), first),
        ScriptedShard::start(folder.path(), second),
    ];
    let sockets: Vec<PathBuf> = shards.iter().map(|shard| shard.socket.clone()).collect();
    let group = ShardGroup::connect(&sockets, soon()).await.unwrap();
    match group.info(soon(), |_| ()).await {
        Err(error) => error.to_string(),
        Ok(_) => group
            .prepare(&parameters(), soon())
            .await
            .unwrap_err()
            .to_string(),
    }
}

fn second() -> Script {
    Script {
        rank: 1,
        world_size: 2,
        ..Script::default()
    }
}

#[tokio::test]
async fn a_group_that_agrees_is_accepted() {
    let folder = tempfile::tempdir().unwrap();
    let shard = ScriptedShard::start(folder.path(), Script::default());
    let sockets = [shard.socket.clone()];
    let group = ShardGroup::connect(&sockets, soon()).await.unwrap();
    let info = group.info(soon(), |_| ()).await.unwrap();
    assert_eq!((info.vocab_size, info.world_size), (VOCAB_SIZE, 1));
    let kv_cache = group.prepare(&parameters(), soon()).await.unwrap();
    let expected = KvCache {
        num_blocks: 64,
        block_size: BLOCK_SIZE,
        kv_cache_bytes: 0,
    };
    assert_eq!(kv_cache, expected);
}

#[tokio::test]
async fn a_socket_that_appears_late_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("shard-0");
    let sockets = [socket];
    let connecting = ShardGroup::connect(&sockets, soon());
    let mut connecting = Box::pin(connecting);
    // The first attempt is made before the shard exists.
    assert!(futures::poll!(&mut connecting).is_pending());
    let _shard = ScriptedShard::start(folder.path(), Script::default());
    assert!(connecting.await.is_ok());
}

#[tokio::test]
async fn a_socket_that_never_appears_is_named_at_the_deadline() {
    let sockets = [PathBuf::from("/nowhere/shard-0")];
    let Err(error) = ShardGroup::connect(&sockets, Instant::now()).await else {
        panic!("connected to nothing");
    };
    let message = error.to_string();
    assert!(
        message.starts_with("shard 0 did not answer on /nowhere/shard-0"),
        "{message}"
    );
    assert!(message.contains("No such file"), "{message}");
}

#[tokio::test]
async fn another_protocol_version_is_refused() {
    let other = Script {
        protocol_version: 2,
        ..second()
    };
    let message = refusal(other).await;
    assert!(
        message.contains("shard 1 speaks protocol version 2"),
        "{message}"
    );
}

#[tokio::test]
async fn another_model_is_refused() {
    let other = Script {
        fingerprint: "other".to_string(),
        ..second()
    };
    let message = refusal(other).await;
    assert!(
        message.contains("shard 1 loaded model \"other\""),
        "{message}"
    );
}

#[tokio::test]
async fn sockets_out_of_rank_order_are_refused() {
    let other = Script {
        rank: 2,
        ..second()
    };
    let message = refusal(other).await;
    assert!(
        message.contains("shard 1 says that it is rank 2"),
        "{message}"
    );
}

#[tokio::test]
async fn a_group_of_another_size_is_refused() {
    let other = Script {
        world_size: 4,
        ..second()
    };
    let message = refusal(other).await;
    assert!(
        message.contains("shard 1 belongs to a group of 4"),
        "{message}"
    );
}

#[tokio::test]
async fn kv_caches_of_different_sizes_are_refused() {
    let other = Script {
        num_blocks: 63,
        ..second()
    };
    let message = refusal(other).await;
    assert!(
        message.contains("shard 1 has 63 KV blocks of 4 tokens, shard 0 has 64"),
        "{message}"
    );
}
