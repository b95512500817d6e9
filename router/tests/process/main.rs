//! The router as a process sees it: a port, a launcher's line, signals and scripted shards. Real HTTP, real sockets, no sleeps.

// Helpers of tests may unwrap too.
#![allow(clippy::unwrap_used)]

#[path = "../engine/scripted_shard.rs"]
#[allow(dead_code)]
mod scripted_shard;

mod client;

mod tenants;

use std::path::Path;
use std::sync::LazyLock;

use client::Client;
use scripted_shard::{Script, ScriptedShard, VOCAB_SIZE, continuation};
use serde_json::{Value, json};
use text_gen_router::config::Config;
use text_gen_router::telemetry::MetricsHandle;
use text_gen_router::{LauncherLine, Process};
use tokio::io::{AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// One recorder for the test process, as for any.
static METRICS: LazyLock<MetricsHandle> = LazyLock::new(MetricsHandle::default);

/// A router that runs, and the test's ends of what it holds.
struct Router {
    folder: tempfile::TempDir,
    client: Client,
    launcher: DuplexStream,
    signals: mpsc::Sender<()>,
    task: JoinSet<anyhow::Result<()>>,
}

impl Router {
    /// Supervised, and not told a model yet.
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("shard-0");
        let flags = [
            "router",
            "--supervised",
            "--model-id",
            "org/tiny",
            "--shard-socket",
        ];
        let arguments = flags
            .iter()
            .map(|flag| flag.to_string())
            .chain([socket.display().to_string()])
            .chain(more.iter().map(|flag| flag.to_string()));
        let config = Config::parse(arguments).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(listener.local_addr().unwrap());
        let (launcher, line) = duplex(1024);
        let (signals, receiver) = mpsc::channel(2);
        let process = Process {
            listener,
            launcher: Some(Box::new(BufReader::new(line)) as LauncherLine),
            signals: receiver,
            metrics: METRICS.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(text_gen_router::run(config, process));
        Self {
            folder,
            client,
            launcher,
            signals,
            task,
        }
    }

    /// Serving a model from one scripted shard.
    async fn ready(script: Script) -> (Self, ScriptedShard) {
        Self::start().await.serving(script).await
    }

    async fn serving(mut self, script: Script) -> (Self, ScriptedShard) {
        let router = &mut self;
        let shard = ScriptedShard::start(router.folder.path(), script);
        write_tokenizer(router.folder.path());
        let model = format!("model {}", router.folder.path().display());
        router.tell(&model).await;
        router.client.until_health(|status, _| status == 200).await;
        (self, shard)
    }

    async fn tell(&mut self, line: &str) {
        self.launcher
            .write_all(format!("{line}\n").as_bytes())
            .await
            .unwrap();
    }

    async fn outcome(&mut self) -> Result<(), String> {
        let outcome = self.task.join_next().await.unwrap().unwrap();
        outcome.map_err(|error| format!("{error:#}"))
    }
}

/// A tokenizer of the words w0, w1 and so on, each its own token.
fn write_tokenizer(folder: &Path) {
    let vocab: serde_json::Map<String, Value> = (0..VOCAB_SIZE)
        .map(|id| (format!("w{id}"), json!(id)))
        .collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "w0"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn generate_body(max_new_tokens: u32) -> Value {
    json!({"inputs": "w1 w2 w3", "parameters": {"max_new_tokens": max_new_tokens, "details": true}})
}

fn token_ids(answer: &Value) -> Vec<u32> {
    let tokens = answer["details"]["tokens"].as_array().unwrap();
    tokens
        .iter()
        .map(|token| token["id"].as_u64().unwrap() as u32)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_shows_the_phase_until_the_model_is_served() {
    let mut router = Router::start().await;
    router.tell("phase downloading 3 of 10").await;
    let shows_phase = |status, body: &str| status == 503 && body.contains("downloading 3 of 10");
    router.client.until_health(shows_phase).await;

    let mut shard = ScriptedShard::start(router.folder.path(), Script::default());
    write_tokenizer(router.folder.path());
    let model = format!("model {}\nrevision abc123", router.folder.path().display());
    router.tell(&model).await;
    router.client.until_health(|status, _| status == 200).await;

    let (status, body) = router.client.post("/generate", &generate_body(7)).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        token_ids(&serde_json::from_str(&body).unwrap()),
        continuation(&[1, 2, 3], 7)
    );

    let (_, info) = router.client.get("/info").await;
    assert!(
        info.contains("org/tiny") && info.contains("abc123"),
        "{info}"
    );

    router.signals.send(()).await.unwrap();
    assert_eq!(router.outcome().await, Ok(()));
    assert!(shard.plans(1).await.len() >= 7);
    assert_eq!(shard.num_sequences(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_series_of_the_engine_is_on_the_first_page() {
    let (router, _shard) = Router::ready(Script::default()).await;
    let (status, page) = router.client.get("/metrics").await;
    assert_eq!(status, 200);
    for series in [
        "tgi_queue_size",
        "tgi_batch_current_size",
        "tgi_batch_current_max_tokens",
        "tgi_batch_inference_count{method=\"prefill\"}",
        "tgi_batch_inference_success{method=\"decode\"}",
        "tgi_batch_inference_duration_bucket{method=\"decode\",le=\"0.00015000000000000001\"}",
        "tgi_batch_forward_duration_count{method=\"prefill\"}",
        "tgi_batch_next_size_bucket{le=\"1024\"}",
        "tgi_request_count",
        "tgi_request_success",
        "text_gen_kv_blocks{state=\"free\"}",
        "text_gen_kv_blocks{state=\"used\"}",
        "text_gen_kv_blocks{state=\"cached\"}",
        "text_gen_preemptions_total",
        "text_gen_prefix_cache_hit_tokens_total",
        "text_gen_prefix_cache_query_tokens_total",
        "text_gen_step_duration_count{method=\"decode\"}",
    ] {
        let found = page.lines().any(|line| {
            line.rsplit_once(' ')
                .is_some_and(|(name, _)| name == series)
        });
        assert!(found, "{series} is missing:\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_launcher_is_the_end_of_the_router() {
    let mut router = Router::start().await;
    drop(std::mem::replace(&mut router.launcher, duplex(1).0));
    assert_eq!(
        router.outcome().await,
        Err("the launcher is gone".to_string())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_while_loading_ends_the_router() {
    let mut router = Router::start().await;
    router.tell("phase resolving").await;
    router
        .client
        .until_health(|_, body| body.contains("resolving"))
        .await;
    router.signals.send(()).await.unwrap();
    assert_eq!(router.outcome().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_signal_lets_the_running_request_finish_and_refuses_others() {
    let held = Script {
        held: true,
        ..Script::default()
    };
    let (mut router, mut shard) = Router::ready(held).await;
    let running = router
        .client
        .start_post("/generate", &generate_body(5))
        .await;
    shard.plans(2).await;
    router.signals.send(()).await.unwrap();
    router.client.until_health(|status, _| status == 503).await;
    let (status, _) = router.client.post("/generate", &generate_body(5)).await;
    assert_eq!(status, 503);
    shard.release_all();
    let (status, body) = running.answer().await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        token_ids(&serde_json::from_str(&body).unwrap()),
        continuation(&[1, 2, 3], 5)
    );
    assert_eq!(router.outcome().await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_does_not_wait() {
    let held = Script {
        held: true,
        ..Script::default()
    };
    let (mut router, mut shard) = Router::ready(held).await;
    let _running = router
        .client
        .start_post("/generate", &generate_body(5))
        .await;
    shard.plans(2).await;
    router.signals.send(()).await.unwrap();
    router.signals.send(()).await.unwrap();
    let error = router.outcome().await.unwrap_err();
    assert_eq!(error, "interrupted while requests were finishing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_death_of_a_shard_is_told_to_the_client_and_ends_the_router() {
    let held = Script {
        held: true,
        ..Script::default()
    };
    let (mut router, mut shard) = Router::ready(held).await;
    let running = router
        .client
        .start_post("/generate", &generate_body(5))
        .await;
    shard.plans(2).await;
    shard.die().await;
    let (status, body) = running.answer().await;
    assert!(status >= 400 && body.contains("shard"), "{status} {body}");
    let error = router.outcome().await.unwrap_err();
    assert!(error.contains("a shard was lost: shard 0"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_frees_its_sequence() {
    let held = Script {
        held: true,
        ..Script::default()
    };
    let (router, mut shard) = Router::ready(held).await;
    let running = router
        .client
        .start_post("/generate", &generate_body(200))
        .await;
    shard.plans(2).await;
    drop(running);
    shard.release(1);
    // Further steps are released one at a time until the shard is told to forget.
    let mut num_plans = 3;
    while !shard
        .plans(num_plans)
        .await
        .iter()
        .any(|plan| plan.forget == [0])
    {
        shard.release(1);
        num_plans += 1;
    }
    assert!(num_plans < 100, "the sequence ran on for {num_plans} steps");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_folder_without_a_tokenizer_ends_the_router_with_its_path() {
    let mut router = Router::start().await;
    let _shard = ScriptedShard::start(router.folder.path(), Script::default());
    let model = format!("model {}", router.folder.path().display());
    router.tell(&model).await;
    let error = router.outcome().await.unwrap_err();
    assert!(error.contains("tokenizer.json"), "{error}");
}
