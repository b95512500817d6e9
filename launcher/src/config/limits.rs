//! Checks the limits of requests, each alone and against each other, and hands them on to the router, which knows the model and
//! so their defaults.

use std::collections::BTreeMap;
use std::ffi::OsString;

use super::add;
use super::check::{Check, Rule};
use crate::args::Flags;

const MAX: u64 = u32::MAX as u64;
const GAMMA: Rule = (|n| n > 0.0 && n < 1.0, "above 0 and below 1");
const DELTA: Rule = (|n| n > 0.0 && n <= 100.0, "above 0 and at most 100");

pub(super) fn add_flags(all: &Flags, check: &mut Check, flags: &mut Vec<OsString>) {
    let limits = &all.limits;
    if limits.max_input_tokens.is_some() && limits.max_input_length.is_some() {
        check.errors.push("--max-input-tokens and --max-input-length are the same: remove --max-input-length, the old name".into());
    }
    let max_input_tokens = limits
        .max_input_tokens
        .as_ref()
        .or(limits.max_input_length.as_ref());
    let table = [
        (
            "--max-concurrent-requests",
            Some(&limits.max_concurrent_requests),
            1..=MAX,
        ),
        ("--max-best-of", Some(&limits.max_best_of), 1..=MAX),
        (
            "--max-stop-sequences",
            Some(&limits.max_stop_sequences),
            0..=MAX,
        ),
        (
            "--max-top-n-tokens",
            Some(&limits.max_top_n_tokens),
            0..=MAX,
        ),
        ("--max-input-tokens", max_input_tokens, 1..=MAX),
        (
            "--max-total-tokens",
            limits.max_total_tokens.as_ref(),
            2..=MAX,
        ),
        (
            "--max-batch-prefill-tokens",
            limits.max_batch_prefill_tokens.as_ref(),
            1..=MAX,
        ),
        (
            "--max-batch-total-tokens",
            limits.max_batch_total_tokens.as_ref(),
            1..=MAX,
        ),
        ("--max-batch-size", limits.max_batch_size.as_ref(), 1..=MAX),
        (
            "--max-client-batch-size",
            Some(&limits.max_client_batch_size),
            1..=MAX,
        ),
        (
            "--validation-workers",
            Some(&limits.validation_workers),
            1..=1024,
        ),
        ("--block-size", all.devices.block_size.as_ref(), 1..=4096),
    ];
    let mut numbers = BTreeMap::new();
    for (flag, text, range) in table {
        if let Some(number) = text.and_then(|text| check.number(flag, text, range)) {
            add(flags, flag, &number.to_string());
            numbers.insert(flag, number);
        }
    }
    check_order(&numbers, check);
    for (flag, text, rule) in [
        ("--watermark-gamma", &limits.watermark_gamma, GAMMA),
        ("--watermark-delta", &limits.watermark_delta, DELTA),
    ] {
        if let Some(number) = check.decimal(flag, text, rule) {
            add(flags, flag, &number.to_string());
        }
    }
    if limits.enable_prefill_logprobs {
        flags.push("--enable-prefill-logprobs".into());
    }
    if limits.disable_grammar_support {
        flags.push("--disable-grammar-support".into());
    }
    if let Some(enabled) = all
        .devices
        .prefix_caching
        .as_ref()
        .and_then(|text| check.boolean("--prefix-caching", text))
    {
        add(flags, "--prefix-caching", &enabled.to_string());
    }
}

fn check_order(numbers: &BTreeMap<&str, u64>, check: &mut Check) {
    let (input, total) = (
        numbers.get("--max-input-tokens"),
        numbers.get("--max-total-tokens"),
    );
    if let (Some(input), Some(total)) = (input, total)
        && input >= total
    {
        check.errors.push(format!(
            "--max-input-tokens {input} leaves no room for an answer: give less than --max-total-tokens {total}, or raise that"
        ));
    }
    let all = numbers.get("--max-batch-total-tokens");
    if let (Some(total), Some(all)) = (total, all)
        && total > all
    {
        check.errors.push(format!(
            "--max-total-tokens {total} does not fit: give at most --max-batch-total-tokens {all}, or raise that"
        ));
    }
}
