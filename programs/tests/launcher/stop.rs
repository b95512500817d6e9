//! Stopping: the router first, with the time that its streams need, then the shards.

use std::time::Instant;

use rustix::process::Signal;

use crate::stage::{ROUTER, SERVER, SOON, Stage};

fn stop_order(signal: Signal) -> Vec<String> {
    let mut stage = Stage::new();
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    launcher.wait_until_ready();
    stage.wait_for("router reads phase loading weights");
    launcher.signal(signal);
    assert_eq!(launcher.wait_for_code(), Some(0));
    stage.assert_no_file_is_left();
    let mut events = stage.wait_for_the_end();
    events.retain(|line| line.ends_with("gets SIGTERM"));
    events
}

#[test]
fn sigterm_ends_the_router_before_the_shards_and_is_no_failure() {
    let order = stop_order(Signal::TERM);
    assert_eq!(order.len(), 3, "{order:?}");
    assert_eq!(order[0], "router gets SIGTERM");
}

#[test]
fn ctrl_c_is_the_same() {
    assert_eq!(stop_order(Signal::INT).len(), 3);
}

#[test]
fn the_shards_run_until_the_router_has_drained() {
    // This router ends when its test says so.
    let router = ROUTER.replace(
        "live\n",
        "on_term() { read -r _ < \"${EVENTS%/*}/drained\"; tell router drained; exit 0; }\nlive\n",
    );
    let mut stage = Stage::new().router(&router);
    let drained = stage.path("drained");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &drained,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .expect("a pipe");
    let mut launcher = stage.launch(&[]);
    launcher.wait_until_ready();
    launcher.signal(Signal::TERM);
    stage.wait_for("router gets SIGTERM");
    std::fs::write(&drained, "now\n").expect("the router waits for it");
    assert_eq!(launcher.wait_for_code(), Some(0));
    let events = stage.wait_for_the_end();
    let at = |event: &str| {
        events
            .iter()
            .position(|line| line == event)
            .unwrap_or_else(|| panic!("{event} in {events:?}"))
    };
    assert!(at("router drained") < at("shard 0 gets SIGTERM"));
}

#[test]
fn a_second_signal_ends_now() {
    let stubborn = "on_term() { :; }\nlive\n";
    let mut stage = Stage::new()
        .router(&ROUTER.replace("live\n", stubborn))
        .server(&SERVER.replace("live ;;", "on_term() { :; }; live ;;"));
    let mut launcher = stage.launch(&[]);
    launcher.wait_until_ready();
    launcher.signal(Signal::TERM);
    stage.wait_for("router gets SIGTERM");
    let begin = Instant::now();
    launcher.signal(Signal::TERM);
    assert_eq!(launcher.wait_for_code(), Some(1));
    stage.wait_for_the_end();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    stage.assert_no_file_is_left();
}

#[test]
fn a_signal_during_the_download_ends_the_download() {
    let mut stage = Stage::new().server("me=resolve; tell resolve starts; live");
    let mut launcher = stage.launch(&["--model-id", "org/name"]);
    stage.wait_for("resolve starts");
    launcher.signal(Signal::TERM);
    assert_eq!(launcher.wait_for_code(), Some(0));
    stage.wait_for_the_end();
    stage.assert_no_file_is_left();
}

#[test]
fn a_shard_that_dies_while_the_router_drains_is_a_failure() {
    let server = SERVER.replace("live ;;", "echo $$ > \"${EVENTS%/*}/pid\"; live ;;");
    let router = ROUTER.replace(
        "live\n",
        "on_term() { trap - TERM; kill -KILL $(cat \"${EVENTS%/*}/pid\"); wait; }\nlive\n",
    );
    let mut stage = Stage::new().router(&router).server(&server);
    let mut launcher = stage.launch(&[]);
    launcher.wait_until_ready();
    launcher.signal(Signal::TERM);
    let (status, log) = launcher.wait();
    assert_eq!(status.code(), Some(1));
    assert!(
        log.iter().any(|line| line.contains("Shard 0 crashed")),
        "{log:#?}"
    );
    stage.wait_for_the_end();
}
