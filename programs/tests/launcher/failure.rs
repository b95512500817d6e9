//! What fails at start or later: the reason is logged, everything goes down, the exit code is not 0, and nothing is left.

use std::time::Instant;

use rustix::process::Signal;

use crate::stage::{Launcher, ROUTER, SERVER, SOON, Stage};

/// Waits for the launcher to fail by itself; gives the rest of its log.
fn assert_fails(stage: &mut Stage, launcher: &mut Launcher) -> Vec<String> {
    let (status, log) = launcher.wait();
    assert_eq!(status.code(), Some(1), "{log:#?}");
    stage.wait_for_the_end();
    stage.assert_no_file_is_left();
    log
}

fn has(log: &[String], text: &str) -> bool {
    log.iter().any(|line| line.contains(text))
}

#[test]
fn a_port_in_use_ends_it_before_any_model_is_looked_for() {
    let mut stage = Stage::new().router("me=router; log ERROR 'port 3000 is in use'; exit 1");
    let begin = Instant::now();
    let mut launcher = stage.launch(&["--model-id", "org/name"]);
    let (status, log) = launcher.wait();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(has(&log, "ERROR router: port 3000 is in use"), "{log:#?}");
    assert!(
        has(&log, "Router failed to start: it exited with code 1"),
        "{log:#?}"
    );
    assert_eq!(stage.wait_for_the_end(), [""; 0]);
    stage.assert_no_file_is_left();
}

#[test]
fn a_model_that_is_not_found_stops_the_router() {
    let mut stage = Stage::new()
        .server("me=resolve; tell resolve starts; log ERROR 'no model org/name' >&2; exit 1");
    let mut launcher = stage.launch(&["--model-id", "org/name"]);
    let log = assert_fails(&mut stage, &mut launcher);
    assert!(has(&log, "ERROR resolve: no model org/name"), "{log:#?}");
    assert!(has(&log, "the search exited with code 1"), "{log:#?}");
}

#[test]
fn an_answer_that_is_no_model_is_a_failure() {
    let mut stage = Stage::new().server("echo nonsense");
    let mut launcher = stage.launch(&["--model-id", "org/name"]);
    let log = assert_fails(&mut stage, &mut launcher);
    assert!(has(&log, "not understood"), "{log:#?}");
}

#[test]
fn a_program_that_is_missing_is_named() {
    let mut stage = Stage::new();
    let mut launcher = stage.launch(&["--server-program=/nonexistent/text-gen-server"]);
    let (status, log) = launcher.wait();
    assert_eq!(status.code(), Some(2), "the flag is given twice: {log:?}");
    std::fs::remove_file(stage.path("text-gen-server")).expect("the script is there");
    let mut launcher = stage.launch(&[]);
    let log = assert_fails(&mut stage, &mut launcher);
    assert!(
        has(&log, "cannot start") && has(&log, "text-gen-server"),
        "{log:#?}"
    );
}

#[test]
fn a_shard_that_fails_to_load_takes_everything_down() {
    let server = format!(
        "[ \"$7\" = 1 ] && {{ me=shard; log ERROR 'missing tensor' >&2; exit 3; }}\n{SERVER}"
    );
    let router = ROUTER.replace("ready", "loading");
    let mut stage = Stage::new().router(&router).server(&server);
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    let log = assert_fails(&mut stage, &mut launcher);
    assert!(has(&log, "ERROR shard: missing tensor rank=1"), "{log:#?}");
    assert!(
        has(&log, "Shard 1 failed to start: it exited with code 3"),
        "{log:#?}"
    );
}

#[test]
fn a_shard_that_dies_takes_the_others_down_at_once_and_the_router_after() {
    // Rank 1 ignores SIGTERM, like one that hangs in an operation with the dead one.
    let server = SERVER.replace(
        "serve) live ;;",
        "serve) echo $$ > \"${EVENTS%/*}/pid-$7\"; on_term() { :; }; live ;;",
    );
    let mut stage = Stage::new().server(&server);
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    launcher.wait_until_ready();
    stage.wait_for("router reads phase loading weights");
    let begin = Instant::now();
    kill(&stage, "pid-0");
    let (status, log) = launcher.wait();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(
        has(&log, "Shard 0 crashed: it was killed by signal 9"),
        "{log:#?}"
    );
    let events = stage.wait_for_the_end();
    assert!(
        events.contains(&"router gets SIGTERM".to_owned()),
        "{events:?}"
    );
    assert!(
        !events.iter().any(|line| line.starts_with("shard 1 gets")),
        "{events:?}"
    );
    stage.assert_no_file_is_left();
}

#[test]
fn a_router_that_ends_by_itself_takes_the_shards_down() {
    let router = ROUTER.replace("live\n", "echo $$ > \"${EVENTS%/*}/pid-router\"\nlive\n");
    let mut stage = Stage::new().router(&router);
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    launcher.wait_until_ready();
    stage.wait_for("router reads phase loading weights");
    kill(&stage, "pid-router");
    let log = assert_fails(&mut stage, &mut launcher);
    assert!(
        has(&log, "Router crashed: it was killed by signal 9"),
        "{log:#?}"
    );
}

fn kill(stage: &Stage, file: &str) {
    let pid = std::fs::read_to_string(stage.path(file)).expect("the script wrote its id");
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().expect("a number"))
        .expect("a process id");
    rustix::process::kill_process(pid, Signal::KILL).expect("it runs");
}

#[test]
fn a_launcher_that_is_killed_leaves_no_process() {
    let mut stage = Stage::new();
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    launcher.wait_until_ready();
    stage.wait_for("router reads phase loading weights");
    let begin = Instant::now();
    launcher.signal(Signal::KILL);
    let mut events = stage.wait_for_the_end();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    events.retain(|line| line.ends_with("reads the end"));
    events.sort();
    assert_eq!(
        events,
        [
            "router reads the end",
            "shard 0 reads the end",
            "shard 1 reads the end"
        ]
    );
}

#[test]
fn the_next_launcher_removes_what_a_killed_one_left() {
    let mut stage = Stage::new();
    let mut first = stage.launch(&[]);
    first.wait_until_ready();
    let left = stage.socket_dir();
    first.signal(Signal::KILL);
    first.wait();
    stage.wait_for_the_end();
    assert!(left.exists());

    let stage_of_second = Stage::new();
    let temp_dir = stage.temp_dir().display().to_string();
    let mut second = stage_of_second.launch_with(&[], &[("TMPDIR", &temp_dir)]);
    second.wait_until_ready();
    assert!(!left.exists());
}
