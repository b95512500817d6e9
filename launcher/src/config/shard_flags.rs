//! Checks the flags of the shards and hands them on.

use std::ffi::OsString;

use super::add;
use super::check::{Check, Rule};
use crate::args::{DeviceArgs, ModelArgs};

const FRACTION: Rule = (|n| n > 0.0 && n <= 1.0, "above 0 and at most 1");
const FACTOR: Rule = (|n| n >= 1.0 && n.is_finite(), "of at least 1");

pub(super) fn add_flags(
    (model, devices): (&ModelArgs, &DeviceArgs),
    check: &mut Check,
    flags: &mut Vec<OsString>,
) {
    let dtype = model.dtype.as_deref().unwrap_or("auto");
    if check.one_of(
        "--dtype",
        dtype,
        &["auto", "float16", "bfloat16", "float32"],
    ) {
        add(flags, "--dtype", dtype);
    }
    if let Some(format) = quantize(model, check) {
        add(flags, "--quantize", format);
    }
    if check.one_of(
        "--kv-cache-dtype",
        &model.kv_cache_dtype,
        &["auto", "fp8_e4m3fn", "fp8_e5m2"],
    ) {
        add(flags, "--kv-cache-dtype", &model.kv_cache_dtype);
    }
    if check.one_of("--device", &devices.device, &["auto", "cpu", "cuda"]) {
        add(flags, "--device", &devices.device);
    }
    if let Some(fraction) = check.decimal(
        "--cuda-memory-fraction",
        &devices.cuda_memory_fraction,
        FRACTION,
    ) {
        add(flags, "--cuda-memory-fraction", &fraction.to_string());
    }
    if let Some(attention) = attention(devices, check) {
        add(flags, "--attention", attention);
    }
    if let Some(sizes) = cuda_graphs(devices, check) {
        add(flags, "--cuda-graphs", &sizes);
    }
    let factor = model
        .rope_factor
        .as_ref()
        .and_then(|text| check.decimal("--rope-factor", text, FACTOR));
    let scaling = model.rope_scaling.as_deref().or(factor.map(|_| "linear"));
    if let Some(scaling) = scaling
        && check.one_of("--rope-scaling", scaling, &["linear", "dynamic"])
    {
        add(flags, "--rope-scaling", scaling);
        add(flags, "--rope-factor", &factor.unwrap_or(1.0).to_string());
    }
}

/// How TGI calls checkpoints that somebody else has quantized, and its own ways to do it.
const QUANTIZED_BY_OTHERS: [&str; 9] = [
    "awq",
    "compressed-tensors",
    "eetq",
    "exl2",
    "gptq",
    "marlin",
    "bitsandbytes",
    "bitsandbytes-nf4",
    "bitsandbytes-fp4",
];

fn quantize<'a>(model: &'a ModelArgs, check: &mut Check) -> Option<&'a str> {
    let format = model.quantize.as_deref()?;
    if QUANTIZED_BY_OTHERS.contains(&format) {
        check.errors.push(format!(
            "--quantize {format}: this format is not supported yet; give a model in its full precision, with int8, int4 or fp8 to round it when it is loaded"
        ));
        return None;
    }
    check
        .one_of("--quantize", format, &["int8", "int4", "fp8"])
        .then_some(format)
}

fn attention<'a>(devices: &'a DeviceArgs, check: &mut Check) -> Option<&'a str> {
    let name = devices.attention.as_deref()?;
    if ["flashinfer", "flashdecoding", "flashdecoding-ipex", "paged"].contains(&name) {
        check.warnings.push(format!("--attention {name} has no effect: it is an implementation of TGI; the fastest one is used"));
        return None;
    }
    Some(name)
}

/// The batch sizes, as the shards read them.
fn cuda_graphs(devices: &DeviceArgs, check: &mut Check) -> Option<String> {
    let text = devices.cuda_graphs.as_deref()?;
    let sizes: Option<Vec<String>> = text
        .split(',')
        .map(|size| size.trim().parse::<u32>().ok().map(|size| size.to_string()))
        .collect();
    if sizes.is_none() {
        check.errors.push(format!(
            "--cuda-graphs '{text}': give batch sizes with commas between them, such as 1,2,4,8, or 0 for no graphs"
        ));
    }
    sizes.map(|sizes| sizes.join(","))
}
