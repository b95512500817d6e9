//! Flags as the process sees them: mistakes, environment twins, warnings.

use crate::stage::{ROUTER, Stage, value, words};

#[test]
fn all_wrong_flags_are_listed_and_nothing_is_started() {
    let stage = Stage::new();
    let mut launcher = stage.launch(&["--port", "x", "--num-shard", "0", "--quantize", "awq"]);
    assert_eq!(launcher.wait_for_code(), Some(2));
    let errors = launcher.errors.rest();
    assert_eq!(errors.len(), 3, "{errors:#?}");
    assert!(
        errors.iter().all(|line| line.starts_with("error: --")),
        "{errors:#?}"
    );
    stage.assert_no_file_is_left();
}

#[test]
fn an_unknown_flag_is_a_usage_error() {
    assert_eq!(
        Stage::new().launch(&["--no-such-flag"]).wait_for_code(),
        Some(2)
    );
}

#[test]
fn help_names_every_flag_of_tgi() {
    let stage = Stage::new();
    let mut launcher = stage.launch(&["--help"]);
    let (status, help) = launcher.wait();
    assert_eq!(status.code(), Some(0));
    let help = help.join("\n");
    for flag in TGI_FLAGS.split_whitespace() {
        assert!(help.contains(&format!("--{flag}")), "{flag}");
        let twin = flag.to_uppercase().replace('-', "_");
        assert!(
            flag == "env" || help.contains(&format!("[env: {twin}")),
            "{twin}"
        );
    }
}

const TGI_FLAGS: &str = "model-id revision validation-workers sharded num-shard quantize speculate dtype kv-cache-dtype \
    trust-remote-code max-concurrent-requests max-best-of max-stop-sequences max-top-n-tokens max-input-tokens max-input-length \
    max-total-tokens waiting-served-ratio max-batch-prefill-tokens max-batch-total-tokens max-waiting-tokens max-batch-size \
    cuda-graphs hostname port prometheus-port shard-uds-path master-addr master-port huggingface-hub-cache \
    weights-cache-override disable-custom-kernels cuda-memory-fraction rope-scaling rope-factor json-output otlp-endpoint \
    otlp-service-name cors-allow-origin api-key watermark-gamma watermark-delta ngrok ngrok-authtoken ngrok-edge \
    tokenizer-config-path disable-grammar-support env max-client-batch-size lora-adapters usage-stats payload-limit \
    enable-prefill-logprobs graceful-termination-timeout";

#[test]
fn the_environment_sets_flags_and_the_command_line_wins() {
    let router = format!(
        "printf '%s\\n' \"$@\" > \"${{EVENTS%/*}}/router.argv\"\ntell \"PORT is ${{PORT-unset}}\"\n{ROUTER}"
    );
    let mut stage = Stage::new().router(&router);
    let variables = [
        ("PORT", "8080"),
        ("MAX_BEST_OF", "7"),
        ("MAX_TOTAL_TOKENS", ""),
        ("ENABLE_PREFILL_LOGPROBS", "1"),
        ("DISABLE_GRAMMAR_SUPPORT", "false"),
        ("HOSTNAME", "3f2a77c0"),
        ("NUM_SHARD", "2"),
    ];
    let mut launcher = stage.launch_with(&["--max-best-of", "3"], &variables);
    launcher.wait_until_ready();
    let router = words(&stage.path("router.argv"));
    assert_eq!(value(&router, "--port"), Some("8080"));
    assert_eq!(value(&router, "--max-best-of"), Some("3"));
    assert_eq!(value(&router, "--max-total-tokens"), None);
    assert_eq!(value(&router, "--hostname"), Some("0.0.0.0"));
    assert!(router.contains(&"--enable-prefill-logprobs".to_owned()));
    assert!(!router.contains(&"--disable-grammar-support".to_owned()));
    assert_eq!(
        router
            .iter()
            .filter(|word| *word == "--shard-socket")
            .count(),
        2
    );
    // A child must not read the same variable again, and see it in another way.
    assert!(
        stage
            .wait_for("router starts")
            .contains(&"PORT is unset".to_owned())
    );
}

#[test]
fn a_flag_without_effect_is_one_warning() {
    let stage = Stage::new();
    let mut launcher = stage.launch_with(
        &["--master-addr", "10.0.0.1"],
        &[("MAX_WAITING_TOKENS", "10"), ("MASTER_PORT", "29500")],
    );
    let log = launcher.wait_for_log("Ready: ");
    let warnings: Vec<_> = log.iter().filter(|line| line.contains(" WARN ")).collect();
    assert_eq!(warnings.len(), 2, "{warnings:#?}");
    assert!(
        warnings
            .iter()
            .any(|line| line.contains("--max-waiting-tokens has no effect")),
        "{warnings:#?}"
    );
}

#[test]
fn env_logs_the_machine_and_goes_on() {
    let stage = Stage::new();
    let mut launcher = stage.launch(&["--env"]);
    let log = launcher.wait_for_log("Ready: ");
    assert!(
        log.iter().any(|line| line.contains("Runtime environment")),
        "{log:#?}"
    );
}
