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

/// Rows that all have as many tokens in the step and in the cache.
struct Case {
    num_rows: usize,
    query_len: usize,
    kv_len: usize,
}

fn main() {
    let threads = (std::env::args().nth(1))
        .and_then(|text| text.parse().ok())
        .unwrap_or(2);
    pool::start(threads);
    println!("{}, {threads} threads", simd::chosen().name());
    for (num_rows, query_len, kv_len) in [
        (1, 1, 192),
        (1, 1, 2048),
        (8, 1, 160),
        (8, 1, 1088),
        (32, 1, 160),
        (1, 128, 128),
        (1, 512, 512),
        (1, 512, 2048),
        (8, 64, 1088),
    ] {
        let case = Case {
            num_rows,
            query_len,
            kv_len,
        };
        let seconds = case.time();
        println!(
            "{num_rows:2} rows of {query_len:3} tokens, {kv_len:4} in the cache: {:8.1} us, {:6.2} GB/s, {:6.1} GFLOP/s",
            seconds * 1e6,
            case.bytes() / seconds / 1e9,
            case.flops() / seconds / 1e9,
        );
    }
}

impl Case {
    /// Of keys and values of a layer.
    fn bytes(&self) -> f64 {
        (2 * 2 * self.num_rows * self.kv_len * NUM_KV_HEADS * HEAD_DIM) as f64
    }

    /// Of a layer: two products for each query head, dimension and key that a token sees.
    fn flops(&self) -> f64 {
        let before = self.kv_len - self.query_len;
        let seen: usize = (1..=self.query_len).map(|own| before + own).sum();
        (4 * self.num_rows * seen * NUM_HEADS * HEAD_DIM) as f64
    }

    /// Median seconds of a layer.
    fn time(&self) -> f64 {
        let blocks_per_row = self.kv_len.div_ceil(BLOCK_SIZE);
        let num_blocks = self.num_rows * blocks_per_row;
        let query_start: Vec<i32> = (0..=self.num_rows)
            .map(|row| (row * self.query_len) as i32)
            .collect();
        let kv_lens = vec![self.kv_len as i32; self.num_rows];
        let block_tables: Vec<i32> = (0..num_blocks)
            .map(|n| (n * 7919 % num_blocks) as i32) // scattered; 7919 is prime
            .collect();
        let num_tokens = self.num_rows * self.query_len;
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
                            num_rows: self.num_rows,
                            max_blocks: blocks_per_row,
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
