//! How fast attention runs over a KV cache of many layers, as in a model: GB/s of keys and values for few query tokens, GFLOP/s
//! for many.
//!
//! `cargo run --release -p text-gen-kernels --example attention [threads]`

use std::time::Instant;

use text_gen_kernels::attention::{Attend, Rows, attend};
use text_gen_kernels::{pool, simd};

const NUM_LAYERS: usize = 30;
const NUM_HEADS: usize = 9;
const NUM_KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;
const BLOCK_SIZE: usize = 32;
const REPEATS: usize = 9;

/// So many rows that have as many tokens in the step and in the cache.
type Alike = (usize, usize, usize);

/// Rows of a step: (tokens in the step, tokens in the cache).
struct Case(Vec<(usize, usize)>);

fn main() {
    let threads = (std::env::args().nth(1))
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    pool::start(threads);
    println!("{}, {threads} threads", simd::chosen().name());
    let cases: [&[Alike]; 12] = [
        &[(1, 1, 192)],
        &[(1, 1, 2048)],
        &[(8, 1, 160)],
        &[(8, 1, 1088)],
        &[(32, 1, 160)],
        &[(1, 16, 2048)],
        &[(1, 128, 128)],
        &[(1, 512, 512)],
        &[(1, 512, 2048)],
        &[(8, 64, 1088)],
        &[(16, 1, 160), (1, 16, 2048)],
        &[(16, 1, 160), (1, 64, 2048)],
    ];
    for alike in cases {
        let case = Case::new(alike);
        let seconds = case.time();
        let rows: Vec<String> = (alike.iter())
            .map(|(rows, query_len, kv_len)| format!("{rows} x {query_len} of {kv_len}"))
            .collect();
        println!(
            "{:28} {:8.1} us, {:6.2} GB/s, {:6.1} GFLOP/s",
            rows.join(" and "),
            seconds * 1e6,
            case.bytes() / seconds / 1e9,
            case.flops() / seconds / 1e9,
        );
    }
}

impl Case {
    fn new(alike: &[Alike]) -> Self {
        let rows = alike.iter().flat_map(|&(num_rows, query_len, kv_len)| {
            std::iter::repeat_n((query_len, kv_len), num_rows)
        });
        Self(rows.collect())
    }

    /// Of keys and values of a layer.
    fn bytes(&self) -> f64 {
        let num_tokens: usize = self.0.iter().map(|(_, kv_len)| kv_len).sum();
        (2 * 2 * num_tokens * NUM_KV_HEADS * HEAD_DIM) as f64
    }

    /// Of a layer: two products for each query head, dimension and key that a token sees.
    fn flops(&self) -> f64 {
        let seen = self.0.iter().map(|(query_len, kv_len)| {
            let before = kv_len - query_len;
            (1..=*query_len).map(|own| before + own).sum::<usize>()
        });
        (4 * seen.sum::<usize>() * NUM_HEADS * HEAD_DIM) as f64
    }

    /// Median seconds of a layer.
    fn time(&self) -> f64 {
        let num_rows = self.0.len();
        let max_blocks = (self.0.iter())
            .map(|(_, kv_len)| kv_len.div_ceil(BLOCK_SIZE))
            .max()
            .unwrap_or(0);
        let num_blocks = num_rows * max_blocks;
        let mut query_start = vec![0_i32];
        for (query_len, _) in &self.0 {
            query_start.push(query_start[query_start.len() - 1] + *query_len as i32);
        }
        let kv_lens: Vec<i32> = self.0.iter().map(|(_, kv_len)| *kv_len as i32).collect();
        let block_tables: Vec<i32> = (0..num_blocks)
            .map(|n| (n * 7919 % num_blocks) as i32) // scattered; 7919 is prime
            .collect();
        let num_tokens = query_start[num_rows] as usize;
        let query: Vec<f32> = (0..num_tokens * NUM_HEADS * HEAD_DIM)
            .map(|n| ((n * 37) % 101) as f32 / 50.0 - 1.0)
            .collect();
        let mut output = vec![0_f32; query.len()];
        let layer_size = num_blocks * BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM;
        let cache: Vec<u16> = (0..2 * NUM_LAYERS * layer_size)
            .map(|n| 0x3e00 + ((n * 0x9e37) >> 6) as u16 % 0x180)
            .collect();
        let mut pool = pool::lock();
        let mut times: Vec<f64> = (0..REPEATS)
            .map(|_| {
                let start = Instant::now();
                for layer in 0..NUM_LAYERS {
                    let keys = &cache[2 * layer * layer_size..][..layer_size];
                    let values = &cache[(2 * layer + 1) * layer_size..][..layer_size];
                    let call = Attend {
                        rows: Rows {
                            query_start: query_start.as_ptr(),
                            kv_lens: kv_lens.as_ptr(),
                            block_tables: block_tables.as_ptr(),
                            num_rows,
                            max_blocks,
                        },
                        query: query.as_ptr(),
                        query_stride: NUM_HEADS * HEAD_DIM,
                        output: output.as_mut_ptr(),
                        keys: keys.as_ptr(),
                        values: values.as_ptr(),
                        block_size: BLOCK_SIZE,
                        num_heads: NUM_HEADS,
                        num_kv_heads: NUM_KV_HEADS,
                        head_dim: HEAD_DIM,
                        sliding_window: 0,
                    };
                    // SAFETY: the vectors have the sizes that `Attend` says.
                    unsafe { attend(&mut pool, call) };
                }
                start.elapsed().as_secs_f64() / NUM_LAYERS as f64
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[REPEATS / 2]
    }
}
