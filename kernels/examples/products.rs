//! How fast products run from cold memory: GB/s of weights for few rows, GFLOP/s for many.
//!
//! `cargo run --release -p text-gen-kernels --example products [threads]`

use std::time::Instant;

use text_gen_kernels::buffer::Scratch;
use text_gen_kernels::linear::{Activations, multiply};
use text_gen_kernels::packed::{Packed, Shape, Source, WeightFormat};
use text_gen_kernels::{pool, simd};

/// More than any cache holds.
const COLD_BYTES: usize = 256 << 20;

fn main() {
    let threads = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    pool::start(threads);
    println!("{}, {threads} threads", simd::chosen().name());
    for (in_features, out_features) in [
        (576, 960),
        (576, 576),
        (576, 3072),
        (1536, 576),
        (2048, 8192),
    ] {
        let weights = vec![0x3c00_u16; in_features * out_features];
        let source = Source {
            weights: weights.as_ptr(),
            rows: out_features,
            in_features,
        };
        let copies = COLD_BYTES / (2 * weights.len()) + 1;
        let packed: Vec<Packed> = (0..copies)
            .map(|_| Packed::pack(source, Shape::Plain, WeightFormat::Bf16))
            .collect();
        for num_rows in [1, 8, 32, 256, 512] {
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
    let mut times: Vec<f64> = (packed[..count].iter())
        .map(|weights| {
            let start = Instant::now();
            // SAFETY: the vectors have the sizes that `Activations` says.
            unsafe { multiply(&mut pool, &mut scratch, weights, activations) };
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
