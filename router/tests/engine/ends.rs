//! How sequences and the engine end: a failure hurts itself, a loss ends all, a stop lets the others finish.

use std::time::Duration;

use text_gen_router::engine::{EngineError, TokenStream};
use tokio::time::Instant;

use crate::fixture::{Fixture, read, spec};
use crate::scripted_shard::{Script, continuation};

#[tokio::test]
async fn a_sequence_with_broken_logits_fails_alone() {
    let fixture = Fixture::one_shard(Script {
        numerical_errors: vec![1],
        ..Script::default()
    })
    .await;
    let mut streams: Vec<TokenStream> = (0..3).map(|n| fixture.submit(&[n, n], 6)).collect();
    assert_eq!(
        read(&mut streams[1]).await,
        (vec![], Err(EngineError::Numerical))
    );
    assert_eq!(read(&mut streams[0]).await.0, continuation(&[0, 0], 6));
    assert_eq!(read(&mut streams[2]).await.0, continuation(&[2, 2], 6));
}

#[tokio::test]
async fn a_sequence_that_can_never_fit_is_refused() {
    let fixture = Fixture::one_shard(Script {
        num_blocks: 4,
        ..Script::default()
    })
    .await;
    let refused = EngineError::TooLong {
        tokens: 17,
        capacity: 16,
    };
    assert_eq!(
        read(&mut fixture.submit(&[1, 2], 15)).await,
        (vec![], Err(refused))
    );
}

#[tokio::test]
async fn the_death_of_a_shard_fails_every_sequence_and_ends_the_engine() {
    let rank = |rank| Script {
        rank,
        world_size: 2,
        held: true,
        ..Script::default()
    };
    let mut fixture = Fixture::start(vec![rank(0), rank(1)]).await;
    let mut streams: Vec<TokenStream> = (0..12).map(|n| fixture.submit(&[n], 9)).collect();
    fixture.shards[1].plans(2).await;
    fixture.shards.remove(1).die().await;
    for stream in &mut streams {
        let (_, end) = read(stream).await;
        assert!(matches!(end, Err(EngineError::ShardLost(_))), "{end:?}");
    }
    let Err(EngineError::ShardLost(message)) = fixture.outcome().await else {
        panic!("the engine did not fail");
    };
    assert!(message.starts_with("shard 1: "), "{message}");
    let refused = fixture.engine.submit(spec(&[1], 1), None).err();
    assert_eq!(refused, Some(EngineError::ShardLost(message)));
}

#[tokio::test]
async fn the_death_of_a_shard_is_noticed_while_idle() {
    let mut fixture = Fixture::one_shard(Script::default()).await;
    let _ = read(&mut fixture.submit(&[1], 1)).await;
    fixture.idle().await;
    fixture.shards.remove(0).die().await;
    assert!(matches!(
        fixture.outcome().await,
        Err(EngineError::ShardLost(_))
    ));
}

#[tokio::test]
async fn a_shard_that_refuses_a_plan_is_lost_with_its_own_words() {
    let mut fixture = Fixture::one_shard(Script {
        fails_at_step: Some(3),
        ..Script::default()
    })
    .await;
    let (tokens, end) = read(&mut fixture.submit(&[1], 9)).await;
    assert_eq!(tokens, continuation(&[1], 2));
    let lost = EngineError::ShardLost("shard 0: out of memory".to_string());
    assert_eq!(end, Err(lost.clone()));
    assert_eq!(fixture.outcome().await, Err(lost));
}

#[tokio::test]
async fn a_stopped_engine_finishes_its_sequences_and_takes_no_more() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let mut stream = fixture.submit(&[1, 2], 6);
    fixture.shards[0].plans(2).await;
    fixture.stop(Instant::now() + Duration::from_secs(60));
    while fixture.engine.stopped().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        fixture.engine.submit(spec(&[1], 1), None).err(),
        Some(EngineError::Stopped)
    );
    fixture.shards[0].release_all();
    assert_eq!(read(&mut stream).await.0, continuation(&[1, 2], 6));
    assert_eq!(fixture.outcome().await, Ok(()));
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}

#[tokio::test]
async fn a_stopped_engine_ends_what_is_left_at_its_deadline() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let mut stream = fixture.submit(&[1, 2], 6);
    fixture.shards[0].plans(2).await;
    fixture.stop(Instant::now());
    assert_eq!(read(&mut stream).await, (vec![], Err(EngineError::Stopped)));
    assert_eq!(fixture.outcome().await, Ok(()));
}
