//! The final limits out of what was asked for, what the model allows and what memory holds. Pure functions, in the order in which
//! the answers become known: the flags, the loaded model, the sized KV cache.

use crate::shard::{KvCache, PrepareParameters, ShardInfo};
use crate::types::{Limits, Watermark};

/// On an accelerator a longer prefill step costs decoding sequences too much latency.
const MAX_DEFAULT_PREFILL_TOKENS: u32 = 8192;
const CPU_PREFILL_TOKENS: u32 = 512;
const ACCELERATOR_BATCH_SIZE: u32 = 256;
const CPU_BATCH_SIZE: u32 = 64;
/// Beyond this nothing but green tokens is ever said.
const MAX_WATERMARK_DELTA: f32 = 100.0;

/// The flags about limits; `None` where it was left to the router.
#[derive(Clone, Debug)]
pub struct LimitFlags {
    pub max_concurrent_requests: usize,
    pub max_best_of: usize,
    pub max_stop_sequences: usize,
    pub max_top_n_tokens: u32,
    pub max_input_tokens: Option<u32>,
    pub max_total_tokens: Option<u32>,
    pub max_batch_prefill_tokens: Option<u32>,
    pub max_batch_total_tokens: Option<u32>,
    pub max_batch_size: Option<u32>,
    pub max_client_batch_size: usize,
    pub payload_limit_bytes: usize,
    pub block_size: Option<u32>,
    pub enable_prefill_logprobs: bool,
    pub grammar_support: bool,
    pub validation_workers: usize,
    pub watermark: Watermark,
}

/// A limit that the model or the memory cannot keep.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LimitError(String);

/// What contradicts itself in the flags alone, one line each.
pub fn mistakes(flags: &LimitFlags) -> Vec<String> {
    let mut mistakes = Vec::new();
    if let (Some(input), Some(total)) = (flags.max_input_tokens, flags.max_total_tokens)
        && input >= total
    {
        mistakes.push(format!(
            "--max-input-tokens {input} must be less than --max-total-tokens {total}"
        ));
    }
    if let (Some(total), Some(batch)) = (flags.max_total_tokens, flags.max_batch_total_tokens)
        && total > batch
    {
        mistakes.push(format!(
            "--max-total-tokens {total} must be at most --max-batch-total-tokens {batch}"
        ));
    }
    let Watermark { gamma, delta } = flags.watermark;
    if !(gamma > 0.0 && gamma < 1.0) {
        mistakes.push(format!(
            "--watermark-gamma {gamma} must be above 0 and below 1"
        ));
    }
    if !(delta > 0.0 && delta <= MAX_WATERMARK_DELTA) {
        mistakes.push(format!(
            "--watermark-delta {delta} must be above 0 and at most {MAX_WATERMARK_DELTA}"
        ));
    }
    mistakes
}

/// The flags as far as the positions of the model reach, and what is to be said about those that reach further. TGI runs on beyond
/// them, into text that the model never learnt to write.
pub fn within_positions(mut flags: LimitFlags, info: &ShardInfo) -> (LimitFlags, Vec<String>) {
    let longest = info.max_model_len;
    let mut warnings = Vec::new();
    let mut lower = |name: &str, limit: &mut Option<u32>, highest: u32| {
        if let Some(given) = limit.filter(|&given| given > highest) {
            *limit = Some(highest);
            warnings.push(format!(
                "{name} {given} is lowered to {highest}: the model has {longest} positions"
            ));
        }
    };
    lower("--max-total-tokens", &mut flags.max_total_tokens, longest);
    lower(
        "--max-input-tokens",
        &mut flags.max_input_tokens,
        longest.saturating_sub(1),
    );
    (flags, warnings)
}

/// What the shards are asked to make room for.
pub fn prepare_parameters(flags: &LimitFlags, info: &ShardInfo) -> PrepareParameters {
    let longest = info.max_model_len;
    let on_cpu = info.device == "cpu";
    let max_total_tokens = flags.max_total_tokens.unwrap_or(longest);
    let max_input_tokens = flags
        .max_input_tokens
        .unwrap_or(max_total_tokens.saturating_sub(1));
    let default_prefill_tokens = if on_cpu {
        CPU_PREFILL_TOKENS
    } else {
        max_input_tokens
            .saturating_add(50)
            .min(MAX_DEFAULT_PREFILL_TOKENS)
    };
    let default_batch_size = if on_cpu {
        CPU_BATCH_SIZE
    } else {
        ACCELERATOR_BATCH_SIZE
    };
    PrepareParameters {
        max_batch_prefill_tokens: flags
            .max_batch_prefill_tokens
            .unwrap_or(default_prefill_tokens),
        max_batch_size: flags.max_batch_size.unwrap_or(default_batch_size),
        max_total_tokens: flags.max_total_tokens.unwrap_or(0),
        max_batch_total_tokens: flags.max_batch_total_tokens.unwrap_or(0).into(),
        block_size: flags.block_size.unwrap_or(0),
    }
}

/// What requests may ask for, now that the KV cache is there.
pub fn final_limits(
    flags: &LimitFlags,
    info: &ShardInfo,
    prepared: &PrepareParameters,
    kv_cache: &KvCache,
) -> Result<Limits, LimitError> {
    let capacity = kv_cache.num_blocks.saturating_mul(kv_cache.block_size);
    let max_total_tokens = flags
        .max_total_tokens
        .unwrap_or(info.max_model_len.min(capacity));
    if max_total_tokens > capacity {
        return Err(LimitError(format!(
            "--max-total-tokens {max_total_tokens} does not fit in the KV cache, which has room for {capacity} tokens"
        )));
    }
    if max_total_tokens < 2 {
        return Err(LimitError(format!(
            "a limit of {max_total_tokens} tokens leaves no room for a prompt and an answer"
        )));
    }
    let max_input_tokens = flags.max_input_tokens.unwrap_or(max_total_tokens - 1);
    if max_input_tokens >= max_total_tokens {
        return Err(LimitError(format!(
            "--max-input-tokens {max_input_tokens} must be less than the {max_total_tokens} tokens that the KV cache leaves to a sequence"
        )));
    }
    Ok(Limits {
        max_concurrent_requests: flags.max_concurrent_requests,
        max_best_of: flags.max_best_of,
        max_stop_sequences: flags.max_stop_sequences,
        max_top_n_tokens: flags.max_top_n_tokens,
        max_input_tokens: max_input_tokens as usize,
        max_total_tokens: max_total_tokens as usize,
        max_client_batch_size: flags.max_client_batch_size,
        payload_limit_bytes: flags.payload_limit_bytes,
        max_batch_prefill_tokens: prepared.max_batch_prefill_tokens,
        max_batch_total_tokens: capacity,
        max_batch_size: prepared.max_batch_size,
        enable_prefill_logprobs: flags.enable_prefill_logprobs,
        grammar_support: flags.grammar_support,
        validation_workers: flags.validation_workers,
        watermark: flags.watermark,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> LimitFlags {
        LimitFlags {
            max_concurrent_requests: 128,
            max_best_of: 2,
            max_stop_sequences: 4,
            max_top_n_tokens: 5,
            max_input_tokens: None,
            max_total_tokens: None,
            max_batch_prefill_tokens: None,
            max_batch_total_tokens: None,
            max_batch_size: None,
            max_client_batch_size: 4,
            payload_limit_bytes: 1000,
            block_size: None,
            enable_prefill_logprobs: false,
            grammar_support: true,
            validation_workers: 2,
            watermark: Watermark {
                gamma: 0.5,
                delta: 2.0,
            },
        }
    }

    fn info(device: &str, max_model_len: u32) -> ShardInfo {
        ShardInfo {
            server_version: "1".to_string(),
            model_fingerprint: "f".to_string(),
            architecture: "llama".to_string(),
            device: device.to_string(),
            device_name: device.to_string(),
            dtype: "float32".to_string(),
            attention: "reference".to_string(),
            world_size: 1,
            vocab_size: 100,
            max_model_len,
        }
    }

    fn kv_cache(num_blocks: u32) -> KvCache {
        KvCache {
            num_blocks,
            block_size: 16,
            kv_cache_bytes: 0,
        }
    }

    fn limits(
        flags: &LimitFlags,
        info: &ShardInfo,
        kv_cache: KvCache,
    ) -> Result<Limits, LimitError> {
        let prepared = prepare_parameters(flags, info);
        final_limits(flags, info, &prepared, &kv_cache)
    }

    #[test]
    fn a_sequence_may_fill_the_model_when_memory_allows() {
        let limits = limits(&flags(), &info("cuda", 4096), kv_cache(1000)).unwrap();
        assert_eq!(
            (limits.max_total_tokens, limits.max_input_tokens),
            (4096, 4095)
        );
        assert_eq!(limits.max_batch_prefill_tokens, 4145);
        assert_eq!(limits.max_batch_size, 256);
        assert_eq!(limits.max_batch_total_tokens, 16_000);
    }

    #[test]
    fn memory_bounds_a_sequence_of_a_long_model() {
        let limits = limits(&flags(), &info("cuda", 131_072), kv_cache(100)).unwrap();
        assert_eq!(
            (limits.max_total_tokens, limits.max_input_tokens),
            (1600, 1599)
        );
        assert_eq!(limits.max_batch_prefill_tokens, 8192);
    }

    #[test]
    fn a_cpu_computes_small_steps() {
        let limits = limits(&flags(), &info("cpu", 4096), kv_cache(1000)).unwrap();
        assert_eq!(
            (limits.max_batch_prefill_tokens, limits.max_batch_size),
            (512, 64)
        );
    }

    #[test]
    fn what_is_given_is_kept() {
        let mut flags = flags();
        flags.max_input_tokens = Some(100);
        flags.max_total_tokens = Some(200);
        flags.max_batch_prefill_tokens = Some(64);
        flags.max_batch_size = Some(3);
        flags.max_batch_total_tokens = Some(400);
        let prepared = prepare_parameters(&flags, &info("cuda", 4096));
        assert_eq!(
            (prepared.max_total_tokens, prepared.max_batch_total_tokens),
            (200, 400)
        );
        let limits = limits(&flags, &info("cuda", 4096), kv_cache(25)).unwrap();
        assert_eq!(
            (limits.max_input_tokens, limits.max_total_tokens),
            (100, 200)
        );
        assert_eq!(
            (limits.max_batch_prefill_tokens, limits.max_batch_size),
            (64, 3)
        );
    }

    #[test]
    fn limits_above_the_positions_are_lowered_and_it_is_said() {
        let mut above = flags();
        above.max_input_tokens = Some(4096);
        above.max_total_tokens = Some(4097);
        let (within, warnings) = within_positions(above, &info("cuda", 4096));
        assert_eq!(
            (within.max_input_tokens, within.max_total_tokens),
            (Some(4095), Some(4096))
        );
        assert_eq!(
            warnings[0],
            "--max-total-tokens 4097 is lowered to 4096: the model has 4096 positions"
        );
        assert_eq!(warnings.len(), 2);
        let limits = limits(&within, &info("cuda", 4096), kv_cache(1000)).unwrap();
        assert_eq!(
            (limits.max_input_tokens, limits.max_total_tokens),
            (4095, 4096)
        );
    }

    #[test]
    fn limits_up_to_the_positions_are_kept() {
        let mut all = flags();
        all.max_input_tokens = Some(4095);
        all.max_total_tokens = Some(4096);
        let (within, warnings) = within_positions(all, &info("cuda", 4096));
        assert_eq!(
            (within.max_input_tokens, within.max_total_tokens),
            (Some(4095), Some(4096))
        );
        assert_eq!(warnings, Vec::<String>::new());
    }

    #[test]
    fn limits_above_the_kv_cache_are_refused() {
        let mut above = flags();
        above.max_total_tokens = Some(161);
        let error = limits(&above, &info("cuda", 4096), kv_cache(10)).unwrap_err();
        assert!(error.to_string().contains("room for 160 tokens"), "{error}");
        let mut above = flags();
        above.max_input_tokens = Some(160);
        assert!(limits(&above, &info("cuda", 4096), kv_cache(10)).is_err());
    }

    #[test]
    fn a_cache_of_almost_u32_max_tokens_does_not_overflow() {
        let huge = KvCache {
            num_blocks: u32::MAX,
            block_size: 16,
            kv_cache_bytes: 0,
        };
        let limits = limits(&flags(), &info("cuda", 4096), huge).unwrap();
        assert_eq!(limits.max_batch_total_tokens, u32::MAX);
    }
}
