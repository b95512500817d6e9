//! Two keys on one server: what one of them computed is of no use to the other, and says nothing to it.

use std::collections::HashMap;

use super::*;
use scripted_shard::proto::StepPlan;

/// By sequence: the tokens it found computed, and the blocks of its first row.
fn first_rows(plans: &[StepPlan]) -> Vec<(u32, Vec<u32>)> {
    let mut found = HashMap::new();
    for plan in plans {
        for new in &plan.new_sequences {
            let row = plan
                .rows
                .iter()
                .find(|row| row.sequence_id == new.sequence_id);
            let blocks = row.unwrap().new_block_ids.clone();
            found.insert(new.sequence_id, (new.num_computed_tokens, blocks));
        }
    }
    let mut found: Vec<_> = found.into_iter().collect();
    found.sort();
    found.into_iter().map(|(_, first)| first).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_prompts_share_blocks_under_one_key_and_none_under_two() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    std::fs::write(&path, "# two clients\nalice:first-key\nbob second-key\n").unwrap();
    let flags = ["--api-key-file", path.to_str().unwrap()];
    let router = Router::start_with(&flags).await;
    let (router, mut shard) = router.serving(Script::default()).await;
    let prompt: Vec<String> = (1..10).map(|n| format!("w{n}")).collect();
    let body = json!({"inputs": prompt.join(" "), "parameters": {"max_new_tokens": 2}});
    let mut answers = Vec::new();
    for key in ["first-key", "second-key", "first-key", "second-key"] {
        let head = format!("authorization: Bearer {key}");
        let answer = router.client.post_with("/generate", &head, &body).await;
        assert_eq!(answer.0, 200, "{}", answer.1);
        answers.push(answer);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let rows = first_rows(&shard.plans(1).await);
    let computed: Vec<u32> = rows.iter().map(|row| row.0).collect();
    assert_eq!(computed, [0, 0, 8, 8]);
    // Of 4 tokens each; the third is not full, so it is free again for anybody.
    let full: Vec<&[u32]> = rows.iter().map(|row| &row.1[..2]).collect();
    assert!(full[1].iter().all(|block| !full[0].contains(block)));
    assert_eq!((full[2], full[3]), (full[0], full[1]));
    assert_eq!(router.client.post("/generate", &body).await.0, 401);
    assert_eq!(router.client.get("/info").await.0, 401);
}
