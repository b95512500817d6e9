//! One log of all processes.

use crate::stage::{ROUTER, SERVER, Stage};

const NOISE: &str = "log INFO 'loads' ',\"bytes\":17'; echo 'plain to stdout'; echo 'plain to stderr' >&2; printf 'no end' >&2; tell noise\n";

fn noisy() -> Stage {
    Stage::new().server(&SERVER.replace("serve) live ;;", &format!("serve) {NOISE} live ;;")))
}

#[test]
fn lines_of_a_shard_carry_its_rank() {
    let stage = noisy();
    let mut launcher = stage.launch(&["--num-shard", "2"]);
    let log = launcher.wait_for_log("Ready: ");
    for rank in 0..2 {
        let loads = format!("T  INFO shard {rank}: loads bytes=17 rank={rank}");
        assert!(log.contains(&loads), "{loads} in {log:#?}");
        let stdout = format!(" INFO text_gen_server: plain to stdout rank={rank}");
        assert!(
            log.iter().any(|line| line.ends_with(&stdout)),
            "{stdout} in {log:#?}"
        );
    }
}

#[test]
fn standard_error_is_a_warning_and_its_last_line_needs_no_end() {
    let stage =
        Stage::new().server("me=resolve; echo 'Traceback' >&2; printf 'no end' >&2; exit 1");
    let mut launcher = stage.launch(&[]);
    let (_, log) = launcher.wait();
    let at = |text: &str| {
        log.iter()
            .position(|line| line.ends_with(text))
            .unwrap_or_else(|| panic!("{text} in {log:#?}"))
    };
    assert!(at(" WARN text_gen_server: Traceback") < at(" WARN text_gen_server: no end"));
    assert!(
        at(" WARN text_gen_server: no end")
            < log
                .iter()
                .position(|line| line.contains("ERROR"))
                .expect("the failure")
    );
}

#[test]
fn json_output_is_json_in_every_line() {
    let stage = noisy();
    let mut launcher = stage.launch(&["--num-shard", "2", "--json-output", "--master-port", "1"]);
    let log = launcher.wait_for_log("Ready: ");
    let parse = |line: &String| -> serde_json::Value {
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    };
    let lines: Vec<_> = log.iter().map(parse).collect();
    for line in &lines {
        assert!(
            line["level"].is_string()
                && line["timestamp"].is_string()
                && line["fields"]["message"].is_string(),
            "{line}"
        );
    }
    let of_rank = |rank: u64| {
        lines
            .iter()
            .filter(|line| line["fields"]["rank"] == rank && line["fields"]["bytes"] == 17)
            .count()
    };
    assert_eq!((of_rank(0), of_rank(1)), (1, 1));
    assert!(
        lines
            .iter()
            .any(|line| line["target"] == "router" && line["fields"]["event"] == "listening")
    );
}

#[test]
fn a_log_that_nobody_reads_does_not_stop_anything() {
    // Far more than the pipe and the queue hold.
    let flood = "i=0; while [ $i -lt 30000 ]; do log INFO 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'; i=$((i+1)); done; tell flood is over\n";
    let mut stage = Stage::new().router(&ROUTER.replace("live\n", &format!("{flood}live\n")));
    let _launcher = stage.launch_unread(&[]);
    stage.wait_for("flood is over");
    stage.wait_for("router reads phase loading weights");
}

#[test]
fn lines_below_the_wanted_level_are_kept_back_and_the_server_starts_all_the_same() {
    let stage = noisy();
    let mut launcher = stage.launch(&["--log-level", "WARN", "--master-port", "1"]);
    let log = launcher.wait_for_log("plain to stderr");
    assert!(log.iter().all(|line| line.contains(" WARN ")), "{log:#?}");
}
