//! What the step loop promises of its steps: one step ahead, every token once, nothing left behind.

use std::sync::Arc;

use scheduler::FinishReason;
use scheduler::plan::{MIN_PREFILL_TOKENS, SamplingParameters};
use text_gen_router::engine::TokenEvent;

use crate::fixture::{Fixture, reached, read, spec};
use crate::scripted_shard::{Script, ScriptedShard, continuation};

#[tokio::test]
async fn a_sequence_gets_its_tokens_and_the_shard_holds_nothing_afterwards() {
    let mut fixture = Fixture::one_shard(Script::default()).await;
    let mut stream = fixture.submit(&[1, 2, 3], 10);
    let outcome = read(&mut stream).await;
    assert_eq!(
        outcome,
        (continuation(&[1, 2, 3], 10), Ok(FinishReason::Length))
    );
    assert!(
        stream.next().await.is_none(),
        "nothing follows the last event"
    );
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
    let last_plan = fixture.shards[0].plans(1).await.pop().unwrap();
    assert!(
        last_plan.rows.is_empty() && last_plan.forget.len() == 1,
        "{last_plan:?}"
    );
}

#[tokio::test]
async fn the_shard_has_the_next_plan_before_it_answers() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let mut stream = fixture.submit(&[1, 2, 3], 4);
    for answered in 0..4 {
        let expected = (answered + 2).min(4);
        let plans = fixture.shards[0].plans(expected).await;
        assert_eq!(plans.len(), expected, "two plans are outstanding, no more");
        fixture.shards[0].release(1);
        let mut progress = fixture.engine.watch_progress();
        reached(&mut progress, |progress| {
            progress.num_steps > answered as u64
        })
        .await;
    }
    fixture.shards[0].release_all();
    assert_eq!(read(&mut stream).await.0, continuation(&[1, 2, 3], 4));
}

#[tokio::test]
async fn the_usual_step_is_known_once_one_of_its_kind_was_answered() {
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let _stream = fixture.submit(&[1, 2, 3], 4);
    fixture.shards[0].plans(2).await;
    let mut progress = fixture.engine.watch_progress();
    for (num_steps, is_known) in [(0, false), (1, false), (2, true)] {
        reached(&mut progress, |progress| {
            progress.num_steps == num_steps && progress.waiting_since.is_some()
        })
        .await;
        let usual_step = fixture.engine.progress().usual_step;
        assert_eq!(usual_step.is_some(), is_known, "after {num_steps} steps");
        fixture.shards[0].release(1);
    }
}

#[tokio::test]
async fn admission_is_told_once_with_the_cached_tokens() {
    let fixture = Fixture::one_shard(Script::default()).await;
    let prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9];
    let _ = read(&mut fixture.submit(&prompt, 2)).await;
    let mut stream = fixture.submit(&prompt, 2);
    let first = stream.next().await.unwrap();
    let TokenEvent::Admitted {
        num_cached_tokens, ..
    } = first
    else {
        panic!("{first:?} comes before the admission");
    };
    assert_eq!(num_cached_tokens, 8);
    assert_eq!(read(&mut stream).await.0, continuation(&prompt, 2));
}

#[tokio::test]
async fn prompt_logprobs_of_all_chunks_come_in_one_piece_before_the_first_token() {
    let fixture = Fixture::one_shard(Script::default()).await;
    let prompt: Vec<u32> = (0..40).collect();
    let mut spec = spec(&prompt, 2);
    spec.read_prefix_cache = false;
    spec.sampling = Arc::new(SamplingParameters {
        prompt_logprobs: true,
        ..SamplingParameters::default()
    });
    let mut stream = fixture.engine.submit(spec, None).unwrap();
    assert!(matches!(
        stream.next().await,
        Some(TokenEvent::Admitted { .. })
    ));
    let Some(TokenEvent::PromptLogprobs(logprobs)) = stream.next().await else {
        panic!("expected prompt log-probabilities");
    };
    let expected: Vec<f32> = (1..40).map(|position| -(position as f32)).collect();
    assert_eq!(logprobs, expected);
    assert_eq!(read(&mut stream).await.0.len(), 2);
}

#[tokio::test]
async fn the_token_that_follows_an_end_token_is_dropped() {
    let fixture = Fixture::one_shard(Script::default()).await;
    let tokens = continuation(&[7, 7], 3);
    let mut spec = spec(&[7, 7], 50);
    spec.end_token_ids = vec![tokens[2]];
    let mut stream = fixture.engine.submit(spec, None).unwrap();
    assert_eq!(
        read(&mut stream).await,
        (tokens, Ok(FinishReason::EndToken))
    );
    assert!(stream.next().await.is_none());
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}

#[tokio::test]
async fn two_shards_answer_as_one() {
    let rank = |rank| Script {
        rank,
        world_size: 2,
        ..Script::default()
    };
    let fixture = Fixture::start(vec![rank(0), rank(1)]).await;
    let (tokens, _) = read(&mut fixture.submit(&[5, 6], 12)).await;
    assert_eq!(tokens, continuation(&[5, 6], 12));
    fixture.idle().await;
    let num_sequences = fixture.shards.iter().map(ScriptedShard::num_sequences);
    assert_eq!(num_sequences.sum::<usize>(), 0);
}

#[tokio::test]
async fn a_step_is_over_when_every_shard_has_answered() {
    let rank = |rank| Script {
        rank,
        world_size: 2,
        held: rank == 1,
        ..Script::default()
    };
    let mut fixture = Fixture::start(vec![rank(0), rank(1)]).await;
    let mut stream = fixture.submit(&[5, 6], 12);
    fixture.shards[0].plans(2).await;
    // Shard 0 and the engine are tasks of this thread, and have all the turns they need.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert_eq!(fixture.engine.progress().num_steps, 0);
    assert_eq!(fixture.shards[0].num_plans(), 2);
    fixture.shards[1].release_all();
    assert_eq!(read(&mut stream).await.0, continuation(&[5, 6], 12));
}

#[tokio::test]
async fn an_idle_engine_sleeps() {
    let fixture = Fixture::one_shard(Script::default()).await;
    let _ = read(&mut fixture.submit(&[1], 3)).await;
    fixture.idle().await;
    // Every turn of the loop reports its progress. Other work goes on meanwhile, so a loop that spun would have had its turns.
    let mut progress = fixture.engine.watch_progress();
    progress.borrow_and_update();
    let num_plans = fixture.shards[0].num_plans();
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!progress.has_changed().unwrap());
    assert_eq!(fixture.shards[0].num_plans(), num_plans);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_prompt_comes_in_small_chunks_beside_a_running_sequence_and_whole_without_one() {
    let script = Script {
        held: true,
        num_blocks: 256,
        compute_us_per_token: 100_000,
        ..Script::default()
    };
    let mut fixture = Fixture::start_with(vec![script], 1000).await;
    let long: Vec<u32> = (0..200).collect();
    let mut alone = fixture.submit(&long, 1);
    fixture.shards[0].release(2);
    assert_eq!(read(&mut alone).await.1, Ok(FinishReason::Length));

    let running = fixture.submit(&[7, 8, 9], 400);
    let mut progress = fixture.engine.watch_progress();
    fixture.shards[0].release(8);
    reached(&mut progress, |progress| progress.num_steps >= 10).await;
    let other: Vec<u32> = (500..700).collect();
    let mut stream = fixture.submit(&other, 1);
    reached(&mut progress, |progress| progress.num_queued == 1).await;
    fixture.shards[0].release_all();
    assert_eq!(read(&mut stream).await.0, continuation(&other, 1));

    let plans = fixture.shards[0].plans(1).await;
    let chunks = |id: u64| -> Vec<u32> {
        let rows = plans.iter().flat_map(|plan| &plan.rows);
        let of_id = rows.filter(|row| row.sequence_id == id);
        of_id.map(|row| row.num_scheduled_tokens).collect()
    };
    assert_eq!(chunks(0), [200]);
    let least = MIN_PREFILL_TOKENS as usize;
    assert_eq!(chunks(2), vec![MIN_PREFILL_TOKENS; 200 / least]);
    drop(running);
}
