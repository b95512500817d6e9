//! Measures the router alone, against a scripted shard: `cargo run --release -p text-gen-router --example router_alone`.
//!
//! The router is a process of its own on one CPU, as shipped, with a real tokenizer, real sockets and SSE. Shard and clients are this
//! process, on the other CPUs, so that both ends of every token have the same clock. Needs `taskset`. Nothing is asserted, because the
//! figures depend on the machine.

mod clients;
mod relay;
mod router;
mod shard;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::runtime::Builder;

use clients::{Answer, Load};
use router::RouterProcess;
use shard::ScriptedShard;

const LATENCY_STEP: Duration = Duration::from_millis(10);
const LATENCY_STREAMS: [u32; 2] = [1, 32];
const LATENCY_TOKENS: u32 = 300;
const FAST_STREAMS: [u32; 3] = [1, 32, 256];
const FAST_TOKENS: u32 = 100_000;
const OPEN_STREAMS: u32 = 400;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(role) if role == router::ROLE => return router::serve(arguments),
        Some(role) if role == relay::ROLE => return relay::serve(arguments),
        _ => {}
    }
    router::leave_first_cpu()?;
    let runtime = Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure())
}

async fn measure() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let shard = ScriptedShard::start(&folder.path().join("shard"))?;
    let mut router = RouterProcess::start(shard.socket())?;
    router.ready().await?;
    // What is done once is not measured.
    answers(&router, &shard, 8, 20).await?;

    for streams in LATENCY_STREAMS {
        latency(&router, &shard, streams).await?;
        let socket = folder.path().join(format!("relay-{streams}"));
        let taken = relay::run(socket, streams, LATENCY_TOKENS, LATENCY_STEP).await?;
        println!("       the same way without a router:");
        print_times("result to event, ms", taken.times);
        print_cpu(taken.cpu, streams);
    }
    for streams in FAST_STREAMS {
        throughput(&router, &shard, streams).await?;
    }
    memory(&folder.path().join("another")).await
}

/// Steps at an even pace: what the router adds to each token, and to each request.
async fn latency(
    router: &RouterProcess,
    shard: &ScriptedShard,
    streams: u32,
) -> anyhow::Result<()> {
    shard.set_step(LATENCY_STEP);
    let cpu = router.cpu_time()?;
    let answers = answers(router, shard, streams, LATENCY_TOKENS).await?;
    let cpu = router.cpu_time()? - cpu;
    let marks = shard.take_marks();
    let (mut tokens, mut requests) = (Vec::new(), Vec::new());
    for (answer, marks) in answers.iter().zip(marks) {
        let planned_at = marks.planned_at.context("the sequence had a plan")?;
        requests.push(planned_at.duration_since(answer.sent_at));
        let pairs = answer.event_at.iter().zip(&marks.sent_at);
        tokens.extend(pairs.map(|(event_at, sent_at)| event_at.duration_since(*sent_at)));
    }
    println!("{streams:>4} streams, a step every {LATENCY_STEP:?}:");
    print_times("result to event, ms", tokens);
    print_times("request to plan, ms", requests);
    print_times("end of a step to the next plan, ms", shard.take_waits());
    print_cpu(cpu, streams);
    Ok(())
}

/// Steps that take no time: how many events a CPU second of the router makes.
async fn throughput(
    router: &RouterProcess,
    shard: &ScriptedShard,
    streams: u32,
) -> anyhow::Result<()> {
    shard.set_step(Duration::ZERO);
    let cpu = router.cpu_time()?;
    let started = Instant::now();
    let per_stream = (FAST_TOKENS / streams).min(router::MAX_NEW_TOKENS);
    let answers = answers(router, shard, streams, per_stream).await?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu = (router.cpu_time()? - cpu).as_secs_f64();
    let events: usize = answers.iter().map(|answer| answer.event_at.len()).sum();
    let events = events as f64;
    println!(
        "{streams:>4} streams, steps of no time: {:.0} events per CPU second, {:.0} per second, {:.1} us of CPU each",
        events / cpu,
        events / seconds,
        cpu / events * 1e6
    );
    Ok(())
}

/// A fresh router with many streams open at once.
async fn memory(folder: &Path) -> anyhow::Result<()> {
    let shard = ScriptedShard::start(folder)?;
    let mut router = RouterProcess::start(shard.socket())?;
    router.ready().await?;
    answers(&router, &shard, 8, 20).await?;
    let before = router.memory_kib()?;
    shard.set_step(Duration::from_millis(100));
    let mut load = Load::start(router.address(), OPEN_STREAMS, router::MAX_NEW_TOKENS);
    load.all_have_events().await;
    let each = router.memory_kib()?.saturating_sub(before) as f64 / f64::from(OPEN_STREAMS);
    println!("{OPEN_STREAMS:>4} streams open: {each:.1} KiB of memory each ({before} KiB without)");
    Ok(())
}

/// All answers of so many streams at once.
async fn answers(
    router: &RouterProcess,
    shard: &ScriptedShard,
    streams: u32,
    tokens: u32,
) -> anyhow::Result<Vec<Answer>> {
    shard.take_marks();
    shard.take_waits();
    let mut load = Load::start(router.address(), streams, tokens);
    let answers = load.answers().await?;
    for answer in &answers {
        let events = answer.event_at.len();
        anyhow::ensure!(events == tokens as usize, "{events} of {tokens} events");
    }
    Ok(answers)
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| {
        let idx = (times.len() * percent / 100).min(times.len() - 1);
        times[idx].as_secs_f64() * 1e3
    };
    println!("       {what}: p50 {:.3}, p99 {:.3}", at(50), at(99));
}

fn print_cpu(cpu: Duration, streams: u32) {
    let step = cpu.as_secs_f64() * 1e6 / f64::from(LATENCY_TOKENS);
    println!(
        "       CPU: {step:.0} us a step, {:.1} us a token",
        step / f64::from(streams)
    );
}
