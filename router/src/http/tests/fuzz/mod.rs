//! Requests that no client means to send. Whatever arrives is answered in time, never with a 5xx, and an error names its reason.
//!
//! `fuzz_requests` runs as an ordinary test with a fixed seed. For longer runs and other seeds:
//! `TEXT_GEN_FUZZ_SECS=600 TEXT_GEN_FUZZ_SEED=7 cargo test -p text-gen-router --lib fuzz`. What it finds goes into
//! `tests/fuzz/corpus/requests`: the path in the first line, the body behind it, byte for byte.

mod json;
mod mutation;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::*;
use crate::types::random::Random;
use json::Json;

/// Far more than any body needs, on a machine that does much else.
const DEADLINE: Duration = Duration::from_secs(30);
/// Of the ordinary test.
const USUAL_CASES: usize = 2500;

/// One request as bytes.
#[derive(Clone)]
struct Case {
    path: String,
    body: Vec<u8>,
}

impl Case {
    fn shown(&self) -> String {
        format!("{}\n{}", self.path, self.body.escape_ascii())
    }
}

/// What is wrong with the answer, if anything.
async fn fuzz_request(server: &Server, case: &Case) -> Option<String> {
    let request = Request::post(case.path.as_str())
        .header("content-type", "application/json")
        .body(Body::from(case.body.clone()))
        .unwrap();
    let started = Instant::now();
    let Ok(reply) = tokio::time::timeout(DEADLINE, server.send(request)).await else {
        return Some("no answer in time".to_owned());
    };
    if started.elapsed() > DEADLINE {
        return Some(format!("answered after {:?}", started.elapsed()));
    }
    if reply.status.is_server_error() || reply.text.contains(r#""error_type":"internal""#) {
        return Some(format!("{} {}", reply.status, reply.text));
    }
    let is_named = || match serde_json::from_str::<Value>(&reply.text) {
        Ok(body) => body["error"].as_str().is_some_and(|text| text.len() > 5),
        Err(_) => reply.text.len() > 5,
    };
    (reply.status.is_client_error() && !is_named())
        .then(|| format!("{} does not say why: {:?}", reply.status, reply.text))
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

/// Bodies that once failed, or that no mutation would find.
fn corpus() -> Vec<Case> {
    let files = fs::read_dir(folder("fuzz/corpus/requests")).unwrap();
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    let case = |path: &PathBuf| {
        let bytes = fs::read(path).unwrap();
        let line = bytes.iter().position(|&byte| byte == b'\n').unwrap();
        Case {
            path: String::from_utf8(bytes[..line].to_vec()).unwrap(),
            body: bytes[line + 1..].to_vec(),
        }
    };
    paths.iter().map(case).collect()
}

/// The requests that TGI answered, and the corpus.
fn seeds() -> Vec<Case> {
    let recorded = fs::read_to_string(folder("data/recorded.jsonl")).unwrap();
    let mut seeds = corpus();
    for line in recorded.lines() {
        let mut case: Value = serde_json::from_str(line).unwrap();
        let request = &mut case["request"];
        let is_known = PATHS.iter().any(|path| request["path"] == *path);
        if is_known && request["body"].is_object() {
            seeds.push(Case {
                path: request["path"].as_str().unwrap().to_owned(),
                body: request["body"].take().to_string().into_bytes(),
            });
        }
    }
    seeds
}

/// The same body may mean something to another route.
const PATHS: [&str; 10] = [
    "/",
    "/generate",
    "/generate_stream",
    "/v1/chat/completions",
    "/v1/completions",
    "/invocations",
    "/vertex",
    "/tokenize",
    "/chat_tokenize",
    "/detokenize",
];

fn mutated(random: &mut Random, seeds: &[Case], trees: &[Json]) -> Case {
    let seed = random.pick(seeds);
    let path = match random.one_in(8) {
        true => (*random.pick(&PATHS)).to_owned(),
        false => seed.path.clone(),
    };
    let Some(mut tree) = Json::parse(&seed.body) else {
        let mut body = seed.body.clone();
        mutation::bytes(random, &mut body);
        return Case { path, body };
    };
    for _ in 0..1 + random.below(4) {
        mutation::tree(random, &mut tree, trees);
    }
    let mut body = tree.to_string().into_bytes();
    if random.one_in(10) {
        mutation::bytes(random, &mut body);
    }
    Case { path, body }
}

#[tokio::test]
async fn requests_that_once_failed_are_answered() {
    let server = greedy();
    for case in corpus() {
        let problem = fuzz_request(&server, &case).await;
        assert_eq!(problem, None, "{}", case.shown());
    }
}

#[tokio::test]
async fn mutated_requests_are_answered_and_never_with_a_5xx() {
    let seeds = seeds();
    assert!(seeds.len() > 80, "{}", seeds.len());
    let trees: Vec<Json> = seeds
        .iter()
        .filter_map(|seed| Json::parse(&seed.body))
        .collect();
    let seed = Random::asked("TEXT_GEN_FUZZ_SEED").unwrap_or(1);
    let until =
        Random::asked("TEXT_GEN_FUZZ_SECS").map(|secs| Instant::now() + Duration::from_secs(secs));
    let mut random = Random::new(seed);
    let server = greedy();
    let mut problems = Vec::new();
    let mut count = 0;
    while until.map_or(count < USUAL_CASES, |until| Instant::now() < until) {
        let case = mutated(&mut random, &seeds, &trees);
        count += 1;
        if let Some(problem) = fuzz_request(&server, &case).await {
            problems.push(format!("{problem}\n{}", case.shown()));
            if problems.len() == 10 {
                break;
            }
        }
    }
    println!("{count} requests with seed {seed}");
    assert!(problems.is_empty(), "of {count}\n{}", problems.join("\n\n"));
}
