//! A cancel is a drop: whoever leaves is gone within one step, and disturbs nobody.

use scheduler::FinishReason;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, reached, read};
use crate::scripted_shard::{Script, continuation};

#[tokio::test]
async fn a_running_sequence_that_is_dropped_is_gone_within_one_step() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let stream = fixture.submit(&[1, 2, 3], 100);
    fixture.shards[0].plans(2).await;
    drop(stream);
    fixture.shards[0].release(1);
    let plans = fixture.shards[0].plans(3).await;
    assert_eq!(
        plans[2].forget,
        [0],
        "the first plan after the drop forgets it"
    );
    assert!(plans[2].rows.is_empty());
    fixture.shards[0].release_all();
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}

#[tokio::test]
async fn a_queued_sequence_that_is_dropped_leaves_the_queue_while_a_step_is_held() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let mut running = fixture.submit(&[1, 2, 3], 5);
    fixture.shards[0].plans(2).await;
    let queued = fixture.submit(&[4, 5, 6], 5);
    let mut progress = fixture.engine.watch_progress();
    reached(&mut progress, |progress| progress.num_queued == 1).await;
    drop(queued);
    reached(&mut progress, |progress| progress.num_queued == 0).await;
    assert_eq!(progress.borrow().num_steps, 0, "no step had to end for it");
    fixture.shards[0].release_all();
    assert_eq!(read(&mut running).await.0, continuation(&[1, 2, 3], 5));
    let plans = fixture.shards[0].plans(1).await;
    let mut new_sequences = plans.iter().flat_map(|plan| &plan.new_sequences);
    assert!(
        new_sequences.all(|new| new.sequence_id == 0),
        "it never reached the shard"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_are_undisturbed_when_a_third_leaves_at_random_points() {
    // 24 blocks of 4 tokens for up to 8 sequences of up to 44 tokens: preemption happens all the time.
    let fixture = Fixture::one_shard(Script {
        num_blocks: 24,
        ..Script::default()
    })
    .await;
    let mut readers = JoinSet::new();
    for n in 0..64_u32 {
        // Every fourth prompt is the same, so that blocks are shared.
        let prompt: Vec<u32> = (0..1 + n % 24)
            .map(|i| if n % 4 == 0 { i } else { i * n % 997 })
            .collect();
        let mut stream = fixture.submit(&prompt, 20);
        readers.spawn(async move {
            if n % 3 == 0 {
                for _ in 0..(n * 7) % 21 {
                    stream.next().await;
                }
                return;
            }
            let outcome = read(&mut stream).await;
            assert_eq!(
                outcome,
                (continuation(&prompt, 20), Ok(FinishReason::Length)),
                "sequence {n}"
            );
        });
    }
    while let Some(reader) = readers.join_next().await {
        reader.unwrap();
    }
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
    assert_eq!(fixture.engine.progress().num_used_blocks, 0);
}
