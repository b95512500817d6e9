//! What the engine promises for constrained sequences: every token under its mask, nobody waits for a mask in vain, and the sequences
//! beside them are not touched.

use std::path::Path;
use std::sync::Arc;

use scheduler::{FinishReason, SequenceSpec};
use text_gen_router::engine::{EngineError, TokenStream};
use text_gen_router::grammar::{Constraint, GrammarCompiler};
use text_gen_router::tokenizer::Tokenizer;
use text_gen_router::types::Grammar;

use crate::fixture::{Fixture, read, spec};
use crate::scripted_shard::{Script, VOCAB_SIZE, continuation};

const END: u32 = 2;
const PROMPT: [u32; 3] = [7, 8, 9];

struct Model {
    tokenizer: Arc<Tokenizer>,
    grammars: GrammarCompiler,
}

impl Model {
    fn load() -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/compat");
        let tokenizer = Arc::new(Tokenizer::load(&folder, None).unwrap());
        Self {
            grammars: GrammarCompiler::new(tokenizer.clone(), VOCAB_SIZE),
            tokenizer,
        }
    }

    fn regex(&self, regex: &str) -> Constraint {
        let grammar = Grammar::Regex(regex.to_owned());
        self.grammars.compile(&grammar).unwrap()
    }

    fn text(&self, tokens: &[u32]) -> String {
        self.tokenizer.decode(tokens, true)
    }
}

fn ending(max_new_tokens: u32) -> SequenceSpec {
    SequenceSpec {
        end_token_ids: vec![END],
        ..spec(&PROMPT, max_new_tokens)
    }
}

fn submit(fixture: &Fixture, max_new_tokens: u32, constraint: Constraint) -> TokenStream {
    let spec = ending(max_new_tokens);
    fixture.engine.submit(spec, Some(constraint)).unwrap()
}

#[tokio::test]
async fn a_constrained_sequence_gives_what_its_grammar_accepts_and_then_its_end() {
    let model = Model::load();
    let fixture = Fixture::one_shard(Script::default()).await;
    let mut stream = submit(&fixture, 40, model.regex("(red|green|blue)( [0-9]{2}){3}"));
    let (tokens, end) = read(&mut stream).await;
    assert_eq!(end, Ok(FinishReason::EndToken));
    let text = model.text(&tokens);
    let words: Vec<&str> = text.split(' ').collect();
    assert!(["red", "green", "blue"].contains(&words[0]), "{text}");
    assert_eq!(words.len(), 4, "{text}");
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}

#[tokio::test]
async fn a_constrained_row_goes_out_a_step_ahead_and_its_mask_follows() {
    let model = Model::load();
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let mut stream = submit(&fixture, 40, model.regex("a{3}b{3}"));
    let plans = fixture.shards[0].plans(2).await;
    assert!(plans[0].rows[0].masked && plans[0].masks.len() == 1);
    assert!(plans[1].rows[0].masked && plans[1].masks.is_empty());
    fixture.shards[0].release(1);
    let id = plans[1].rows[0].sequence_id;
    let mask = fixture.shards[0].late_mask(plans[1].step_id, id).await;
    assert_eq!(mask.len(), VOCAB_SIZE.div_ceil(32) as usize * 4);
    fixture.shards[0].release_all();
    let (tokens, _) = read(&mut stream).await;
    assert_eq!(model.text(&tokens), "aaabbb");
}

#[tokio::test]
async fn a_sequence_beside_constrained_ones_is_the_same_as_alone() {
    let model = Model::load();
    let fixture = Fixture::one_shard(Script::default()).await;
    let mut constrained: Vec<TokenStream> = (0..4)
        .map(|_| submit(&fixture, 30, model.regex("[0-9]{20}")))
        .collect();
    let mut free = fixture.submit(&[1, 2, 3], 30);
    assert_eq!(read(&mut free).await.0, continuation(&[1, 2, 3], 30));
    for stream in &mut constrained {
        let (tokens, end) = read(stream).await;
        assert_eq!(end, Ok(FinishReason::EndToken));
        assert_eq!(model.text(&tokens).len(), 20);
    }
}

#[tokio::test]
async fn a_constrained_sequence_that_is_preempted_goes_on_as_if_it_were_not() {
    let model = Model::load();
    let alone = Fixture::one_shard(Script::default()).await;
    let expected = read(&mut submit(&alone, 60, model.regex("[a-z]{90}"))).await;
    let fixture = Fixture::one_shard(Script {
        num_blocks: 16,
        ..Script::default()
    })
    .await;
    // They fill all blocks, however fast the third is.
    let mut free: Vec<TokenStream> = (0..2).map(|n| fixture.submit(&[n, n], 30)).collect();
    let mut constrained = submit(&fixture, 60, model.regex("[a-z]{90}"));
    for stream in &mut free {
        assert_eq!(read(stream).await.1, Ok(FinishReason::Length));
    }
    assert_eq!(read(&mut constrained).await, expected);
    let again = fixture.shards[0].num_times_new(2);
    assert!(again > 1, "it was preempted");
}

#[tokio::test]
async fn shards_that_wait_for_the_mask_of_a_dropped_sequence_go_on() {
    let model = Model::load();
    let mut fixture = Fixture::one_shard(Script {
        held: true,
        ..Script::default()
    })
    .await;
    let constrained = submit(&fixture, 40, model.regex("a{30}"));
    let plans = fixture.shards[0].plans(2).await;
    drop(constrained);
    let id = plans[1].rows[0].sequence_id;
    let mask = fixture.shards[0].late_mask(plans[1].step_id, id).await;
    assert!(mask.is_empty(), "any token will do");
    fixture.shards[0].release_all();
    let mut free = fixture.submit(&[1, 2], 5);
    assert_eq!(read(&mut free).await.0, continuation(&[1, 2], 5));
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}

#[tokio::test]
async fn an_answer_that_is_cut_off_frees_the_step_behind_it() {
    let model = Model::load();
    let fixture = Fixture::one_shard(Script::default()).await;
    for max_new_tokens in 1..6 {
        let mut stream = submit(&fixture, max_new_tokens, model.regex("a{30}"));
        let (tokens, end) = read(&mut stream).await;
        assert_eq!(end, Ok(FinishReason::Length));
        assert_eq!(tokens.len(), max_new_tokens as usize);
    }
    fixture.idle().await;
}

#[tokio::test]
async fn only_the_row_of_a_broken_constraint_fails() {
    let model = Model::load();
    let fixture = Fixture::one_shard(Script {
        // Its logits are not finite, so it ends while the step behind it waits for a mask.
        numerical_errors: vec![0],
        ..Script::default()
    })
    .await;
    let mut broken = submit(&fixture, 10, model.regex("a{30}"));
    let mut sound = submit(&fixture, 10, model.regex("b{3}"));
    assert_eq!(read(&mut broken).await.1, Err(EngineError::Numerical));
    assert_eq!(model.text(&read(&mut sound).await.0), "bbb");
}

#[tokio::test]
async fn two_ranks_give_what_one_gives() {
    let model = Model::load();
    let one = Fixture::one_shard(Script::default()).await;
    let expected = read(&mut submit(&one, 20, model.regex("[0-9a-f]{12}"))).await;
    let rank = |rank| Script {
        rank,
        world_size: 2,
        ..Script::default()
    };
    let two = Fixture::start(vec![rank(0), rank(1)]).await;
    let mut stream = submit(&two, 20, model.regex("[0-9a-f]{12}"));
    assert_eq!(read(&mut stream).await, expected);
}

/// Its masks take some milliseconds, because what counts is told by a letter far back.
fn slow(model: &Model) -> Constraint {
    model.regex(r"(.|\n)*a(.|\n){16}")
}

#[tokio::test]
async fn sequences_beside_slow_masks_are_the_same_as_alone() {
    let model = Model::load();
    let fixture = Fixture::one_shard(Script::default()).await;
    let mut constrained: Vec<TokenStream> =
        (0..3).map(|_| submit(&fixture, 10, slow(&model))).collect();
    let mut free = fixture.submit(&[1, 2, 3], 30);
    assert_eq!(read(&mut free).await.0, continuation(&[1, 2, 3], 30));
    let expected = read(&mut constrained[0]).await;
    for stream in &mut constrained[1..] {
        assert_eq!(read(stream).await, expected);
    }
    fixture.idle().await;
    assert_eq!(fixture.shards[0].num_sequences(), 0);
}
