//! What flags become, and which mistakes are named.

use std::ffi::OsString;

use super::*;
use crate::args::{self, Surroundings};

fn parse(line: &str) -> Args {
    let words = std::iter::once("text-gen-launcher").chain(line.split_whitespace());
    let mut args = args::parse(words.map(OsString::from)).expect("the command line parses");
    args.surroundings = Surroundings {
        temp_dir: "/tmp".into(),
        ..Surroundings::default()
    };
    args
}

fn config(line: &str) -> Config {
    Config::check(&parse(line))
        .expect("the configuration is right")
        .0
}

fn errors(line: &str) -> Vec<String> {
    Config::check(&parse(line)).expect_err("the configuration is wrong")
}

fn value<'a>(flags: &'a [OsString], flag: &str) -> Option<&'a str> {
    let at = flags.iter().position(|word| word == flag)?;
    flags.get(at + 1)?.to_str()
}

#[test]
fn the_defaults_are_those_of_tgi() {
    let config = config("");
    let router = |flag| value(&config.router_flags, flag);
    assert_eq!(router("--port"), Some("3000"));
    assert_eq!(router("--max-concurrent-requests"), Some("128"));
    assert_eq!(router("--max-best-of"), Some("2"));
    assert_eq!(router("--max-stop-sequences"), Some("4"));
    assert_eq!(router("--max-top-n-tokens"), Some("5"));
    assert_eq!(router("--max-client-batch-size"), Some("4"));
    assert_eq!(router("--payload-limit"), Some("2000000"));
    assert_eq!(router("--validation-workers"), Some("2"));
    assert_eq!(router("--max-total-tokens"), None);
    assert_eq!(config.graceful_termination_timeout, Duration::from_secs(90));
    assert_eq!(config.num_shards, 1);
    assert_eq!(config.model.model_id, None);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let errors = errors(
        "--port 70000 --num-shard none --dtype int8 --max-best-of -1 --cuda-memory-fraction 1.5 --quantize awq",
    );
    for flag in [
        "--port '70000'",
        "--num-shard 'none'",
        "--dtype 'int8'",
        "--max-best-of '-1'",
        "--cuda-memory-fraction '1.5'",
    ] {
        assert_eq!(
            errors.iter().filter(|line| line.starts_with(flag)).count(),
            1,
            "{flag} in {errors:?}"
        );
    }
    assert!(
        errors
            .iter()
            .any(|line| line.starts_with("--quantize awq: "))
    );
    assert_eq!(errors.len(), 6);
}

#[test]
fn eight_bit_floats_are_handed_on() {
    let flags = config("--quantize fp8 --kv-cache-dtype fp8_e4m3fn").shard_flags;
    assert_eq!(value(&flags, "--quantize"), Some("fp8"));
    assert_eq!(value(&flags, "--kv-cache-dtype"), Some("fp8_e4m3fn"));
    assert_eq!(
        value(&config("").shard_flags, "--kv-cache-dtype"),
        Some("auto")
    );
    assert!(errors("--kv-cache-dtype int8")[0].starts_with("--kv-cache-dtype 'int8'"));
}

#[test]
fn every_mistake_is_one_line() {
    for line in errors(
        "--port x --sharded perhaps --rope-factor 0 --hostname example.com --lora-adapters a,b --kv-cache-dtype fp8",
    ) {
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn limits_are_checked_against_each_other() {
    assert!(
        errors("--max-input-tokens 10 --max-total-tokens 10")[0]
            .starts_with("--max-input-tokens 10")
    );
    assert!(
        errors("--max-input-length 10 --max-total-tokens 5")[0]
            .starts_with("--max-input-tokens 10")
    );
    assert!(
        errors("--max-total-tokens 20 --max-batch-total-tokens 10")[0]
            .starts_with("--max-total-tokens 20")
    );
    assert_eq!(errors("--max-input-tokens 1 --max-input-length 1").len(), 1);
}

#[test]
fn the_old_name_of_the_longest_prompt_is_handed_on_under_the_new_one() {
    assert_eq!(
        value(
            &config("--max-input-length 77").router_flags,
            "--max-input-tokens"
        ),
        Some("77")
    );
}

#[test]
fn a_flag_without_effect_warns_and_names_its_replacement() {
    let warnings =
        config("--master-port 1 --shard-uds-path /run/x --ngrok --trust-remote-code").warnings;
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(
        warnings
            .iter()
            .any(|line| line.starts_with("--shard-uds-path has no effect")
                && line.contains("TMPDIR"))
    );
}

#[test]
fn a_legacy_flag_with_its_default_says_nothing() {
    let quiet = "--waiting-served-ratio 0.3 --max-waiting-tokens 20 --master-port 29500 --usage-stats off --kv-cache-dtype auto";
    assert_eq!(config(quiet).warnings, [""; 0]);
}

#[test]
fn every_visible_gpu_gets_a_shard() {
    let count = |line: &str, cuda: Option<&str>, nvidia: Option<&str>, num_driver_gpus| {
        let mut args = parse(line);
        args.surroundings.cuda_visible_devices = cuda.map(String::from);
        args.surroundings.nvidia_visible_devices = nvidia.map(String::from);
        args.surroundings.num_driver_gpus = num_driver_gpus;
        Config::check(&args)
            .expect("the configuration is right")
            .0
            .num_shards
    };
    assert_eq!(count("", Some("0,2,3"), None, 8), 3);
    assert_eq!(count("", Some("0,-1,3"), None, 8), 1);
    assert_eq!(count("", Some(""), None, 8), 1);
    assert_eq!(count("", None, Some("4,5"), 8), 2);
    assert_eq!(count("", None, Some("all"), 8), 8);
    assert_eq!(count("", None, None, 8), 8);
    assert_eq!(count("", None, None, 0), 1);
    assert_eq!(count("--device cpu", None, None, 8), 1);
    assert_eq!(count("--num-shard 2", None, None, 8), 2);
    assert_eq!(count("--sharded false --num-shard 4", None, None, 8), 1);
    assert_eq!(count("--sharded 1", None, None, 8), 8);
}

#[test]
fn sharded_without_devices_asks_for_a_number() {
    assert!(errors("--sharded true")[0].contains("--num-shard"));
    assert!(errors("--sharded true --num-shard 1")[0].contains("--num-shard"));
    assert_eq!(config("--sharded true --num-shard 2").num_shards, 2);
}

#[test]
fn only_a_typed_name_of_a_machine_is_a_mistake() {
    assert_eq!(errors("--hostname example.com").len(), 1);
    assert_eq!(
        value(&config("--hostname localhost").router_flags, "--hostname"),
        Some("127.0.0.1")
    );
    assert_eq!(
        value(&config("--hostname ::1").router_flags, "--hostname"),
        Some("::1")
    );
    let mut args = parse("");
    args.flags.http.hostname = "3f2a77c0".into();
    let (config, _) = Config::check(&args).expect("the name of a container is ignored");
    assert_eq!(value(&config.router_flags, "--hostname"), Some("0.0.0.0"));
}

#[test]
fn a_factor_alone_scales_linearly() {
    let scaled = config("--rope-factor 2");
    assert_eq!(value(&scaled.shard_flags, "--rope-scaling"), Some("linear"));
    assert_eq!(value(&scaled.shard_flags, "--rope-factor"), Some("2"));
    assert_eq!(
        value(
            &config("--rope-scaling dynamic").shard_flags,
            "--rope-factor"
        ),
        Some("1")
    );
    assert_eq!(value(&config("").shard_flags, "--rope-factor"), None);
    assert_eq!(errors("--rope-factor 0.5 --rope-scaling cubic").len(), 2);
    assert_eq!(
        errors("--rope-factor inf --cuda-memory-fraction nan").len(),
        2
    );
}

#[test]
fn origins_can_be_repeated_or_listed() {
    let flags =
        config("--cors-allow-origin http://a,http://b --cors-allow-origin http://c").router_flags;
    assert_eq!(
        flags
            .iter()
            .filter(|word| *word == "--cors-allow-origin")
            .count(),
        3
    );
}

#[test]
fn a_secret_is_in_no_flag_and_does_not_show_itself() {
    let config = config("--api-key hunter2");
    assert!(!format!("{config:?}").contains("hunter2"));
    assert_eq!(
        config.api_keys.as_ref().map(Secret::reveal),
        Some("key-1:hunter2")
    );
    assert_eq!(config.warnings.len(), 1);
    assert_eq!(errors("--api-key=").len(), 1);
    for flag in config.router_flags {
        assert!(!flag.to_string_lossy().contains("hunter2"));
    }
}

#[test]
fn keys_are_joined_and_a_comma_belongs_to_its_key() {
    let config = config("--api-key a,b --api-key c --api-keys alice:d --api-key-file /run/keys");
    assert_eq!(
        config.api_keys.as_ref().map(Secret::reveal),
        Some("key-1:a,b\nkey-2:c\nalice:d")
    );
    assert_eq!(
        value(&config.router_flags, "--api-key-file"),
        Some("/run/keys")
    );
}

#[test]
fn public_routes_are_paths() {
    let flags = config("--public-routes /metrics,/info").router_flags;
    let count = flags
        .iter()
        .filter(|word| *word == "--public-routes")
        .count();
    assert_eq!(count, 2);
    assert_eq!(errors("--public-routes metrics").len(), 1);
}

#[test]
fn implementations_of_tgi_are_no_reason_to_fail() {
    let config = config("--attention flashinfer");
    assert_eq!(value(&config.shard_flags, "--attention"), None);
    assert_eq!(config.warnings.len(), 1);
}

#[test]
fn the_watermark_is_a_matter_of_the_router() {
    let flags = config("--watermark-gamma 0.25").router_flags;
    assert_eq!(value(&flags, "--watermark-gamma"), Some("0.25"));
    assert_eq!(value(&flags, "--watermark-delta"), Some("2"));
    assert_eq!(
        errors("--watermark-gamma 1 --watermark-delta -0.5").len(),
        2
    );
}

#[test]
fn sizes_of_graphs_are_handed_to_the_shards_as_numbers() {
    let flags = |line| config(line).shard_flags;
    assert_eq!(
        value(&flags("--cuda-graphs 1,2,32"), "--cuda-graphs"),
        Some("1,2,32")
    );
    assert_eq!(value(&flags("--cuda-graphs 0"), "--cuda-graphs"), Some("0"));
    assert_eq!(value(&flags(""), "--cuda-graphs"), None);
    for wrong in ["1,two", "1,,2", "-1", "1.5", "99999999999"] {
        let lines = errors(&format!("--cuda-graphs {wrong}"));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(&format!("--cuda-graphs '{wrong}': give batch sizes")));
    }
}
