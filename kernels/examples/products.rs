//! How fast products run from cold memory: GB/s of weights for few rows, GFLOP/s for many.
//!
//! `cargo run --release -p text-gen-kernels --example products [threads [bf16|compact|int8|int4]]`

use std::time::Instant;

use text_gen_kernels::buffer::Scratch;
use text_gen_kernels::linear::{Activations, Weights, multiply};
use text_gen_kernels::packed::{Packed, Shape, Source, WeightFormat};
use text_gen_kernels::{pool, simd};

/// More than any cache holds.
const COLD_BYTES: usize = 256 << 20;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads = (arguments.next())
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    let format = match arguments.next().as_deref() {
        Some("bf16") => WeightFormat::Bf16,
        Some("int8") => WeightFormat::Int8,
        Some("int4") => WeightFormat::Int4,
        _ => WeightFormat::Compact,
    };
    pool::start(threads);
    let set = simd::chosen().name();
    println!("{set}, {threads} threads, {format:?}");
    for (in_features, out_features) in [
        (576, 960),
        (576, 576),
        (576, 3072),
        (1536, 576),
        (2048, 8192),
    ] {
        // Of about the exponents that real weights have.
        let weights: Vec<u16> = (0..in_features * out_features)
            .map(|n| 0x3c00 + ((n * 0x9e37) >> 6) as u16 % 0x180)
            .collect();
        let source = Source {
            weights: weights.as_ptr(),
            rows: out_features,
            in_features,
        };
        let copies = COLD_BYTES / (2 * weights.len()) + 1;
        let packed: Vec<Packed> = (0..copies)
            .map(|_| Packed::pack(source, Shape::Plain, format))
            .collect();
        for num_rows in [1, 8, 16, 32, 64, 256] {
            let seconds = time(&packed, num_rows);
            let bytes = packed[0].num_bytes() as f64;
            let flops = 2.0 * (num_rows * in_features * out_features) as f64;
            println!(
                "{in_features:5} x {out_features:5}, {num_rows:3} rows: {:9.1} us, {:6.2} GB/s, {:7.1} GFLOP/s",
                seconds * 1e6,
                bytes / seconds / 1e9,
                flops / seconds / 1e9
            );
        }
    }
}

/// Median seconds of a product, each with other weights.
fn time(packed: &[Packed], num_rows: usize) -> f64 {
    let (in_features, out_features) = (packed[0].in_features, packed[0].out_features);
    let input = vec![0.01_f32; num_rows * in_features];
    let mut output = vec![0_f32; num_rows * out_features];
    let activations = Activations {
        input: input.as_ptr(),
        input_stride: in_features,
        bias: std::ptr::null(),
        output: output.as_mut_ptr(),
        output_stride: out_features,
        num_rows,
    };
    let mut scratch = Scratch::default();
    let mut pool = pool::lock();
    let count = if num_rows > 32 {
        packed.len().min(20)
    } else {
        packed.len()
    };
    let mut times: Vec<f64> = (0..count)
        .map(|n| {
            let weights = Weights {
                now: &packed[n],
                next: packed.get(n + 1),
            };
            let start = Instant::now();
            // SAFETY: the vectors have the sizes that `Activations` says.
            unsafe { multiply(&mut pool, &mut scratch, weights, activations) };
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
