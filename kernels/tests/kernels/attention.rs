//! Paged attention against a softmax in float64, over ragged batches in scattered blocks.

use crate::common::{Random, with_every_instruction_set};
use text_gen_kernels::attention::{Attend, Rows, attend};
use text_gen_kernels::bf16;
use text_gen_kernels::pool;

#[derive(Clone)]
struct Case {
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    block_size: usize,
    sliding_window: usize,
    query_start: Vec<i32>,
    kv_lens: Vec<i32>,
    block_tables: Vec<i32>,
    max_blocks: usize,
    query: Vec<f32>,
    keys: Vec<u16>,
    values: Vec<u16>,
}

const NAN: u16 = 0x7fc0;

impl Case {
    /// lens: (tokens in this step, tokens in the cache) of each row. What no row owns is NaN.
    fn random(
        random: &mut Random,
        heads: (usize, usize, usize),
        (block_size, sliding_window): (usize, usize),
        lens: &[(usize, usize)],
    ) -> Self {
        let (num_heads, num_kv_heads, head_dim) = heads;
        let max_blocks = lens
            .iter()
            .map(|(_, kv_len)| kv_len.div_ceil(block_size))
            .max()
            .unwrap_or(0);
        let num_blocks = lens.len() * max_blocks + 3;
        let mut free: Vec<i32> = (0..num_blocks as i32).collect();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for _ in 0..num_blocks * block_size * num_kv_heads * head_dim {
            keys.push(NAN);
            values.push(NAN);
        }
        let mut case = Self {
            num_heads,
            num_kv_heads,
            head_dim,
            block_size,
            sliding_window,
            query_start: vec![0],
            kv_lens: Vec::new(),
            block_tables: vec![0; lens.len() * max_blocks],
            max_blocks,
            query: Vec::new(),
            keys,
            values,
        };
        for (row, (query_len, kv_len)) in lens.iter().enumerate() {
            case.query_start
                .push(case.query_start[row] + *query_len as i32);
            case.kv_lens.push(*kv_len as i32);
            for block in 0..kv_len.div_ceil(block_size) {
                case.block_tables[row * max_blocks + block] =
                    free.swap_remove(random.below(free.len()));
            }
            for position in 0..*kv_len {
                for kv_head in 0..num_kv_heads {
                    for n in 0..head_dim {
                        let (key, value) = case.offsets(row, position, kv_head, n);
                        case.keys[key] = bf16::from_f32(random.float() * 2.0);
                        case.values[value] = bf16::from_f32(random.float());
                    }
                }
            }
        }
        let num_tokens = case.query_start[lens.len()] as usize;
        case.query = random.floats(num_tokens * num_heads * head_dim);
        case
    }

    /// Where element n of a key and of a value are.
    fn offsets(&self, row: usize, position: usize, kv_head: usize, n: usize) -> (usize, usize) {
        let block = self.block_tables[row * self.max_blocks + position / self.block_size] as usize;
        let slot = block * self.block_size + position % self.block_size;
        let (chunk, slot) = (slot / 16, slot % 16);
        let head = (chunk * self.num_kv_heads + kv_head) * 16 * self.head_dim;
        let key = (n / 2 * 16 + slot) * 2 + n % 2;
        let value = (slot / 2 * self.head_dim + n) * 2 + slot % 2;
        (head + key, head + value)
    }

    fn run(&self) -> Vec<f32> {
        let mut output = vec![f32::NAN; self.query.len()];
        let request = Attend {
            rows: Rows {
                query_start: self.query_start.as_ptr(),
                kv_lens: self.kv_lens.as_ptr(),
                block_tables: self.block_tables.as_ptr(),
                num_rows: self.kv_lens.len(),
                max_blocks: self.max_blocks,
            },
            query: self.query.as_ptr(),
            query_stride: self.num_heads * self.head_dim,
            output: output.as_mut_ptr(),
            keys: self.keys.as_ptr(),
            values: self.values.as_ptr(),
            block_size: self.block_size,
            num_heads: self.num_heads,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
            sliding_window: self.sliding_window,
        };
        unsafe { attend(&mut pool::lock(), request) };
        output
    }

    /// One head of one token, in float64.
    fn expected(&self, row: usize, token: usize, head: usize) -> Vec<f64> {
        let query_len = (self.query_start[row + 1] - self.query_start[row]) as usize;
        let position = self.kv_lens[row] as usize - query_len + token;
        let first = if self.sliding_window == 0 {
            0
        } else {
            (position + 1).saturating_sub(self.sliding_window)
        };
        let kv_head = head / (self.num_heads / self.num_kv_heads);
        let start =
            ((self.query_start[row] as usize + token) * self.num_heads + head) * self.head_dim;
        let key_at = |key, n| {
            f64::from(bf16::to_f32(
                self.keys[self.offsets(row, key, kv_head, n).0],
            ))
        };
        let value_at = |key, n| {
            f64::from(bf16::to_f32(
                self.values[self.offsets(row, key, kv_head, n).1],
            ))
        };
        let scores: Vec<f64> = (first..=position)
            .map(|key| {
                let products =
                    (0..self.head_dim).map(|n| f64::from(self.query[start + n]) * key_at(key, n));
                products.sum::<f64>() / (self.head_dim as f64).sqrt()
            })
            .collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - highest).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..self.head_dim)
            .map(|n| {
                weights
                    .iter()
                    .zip(first..)
                    .map(|(weight, key)| weight * value_at(key, n))
                    .sum::<f64>()
                    / total
            })
            .collect()
    }

    fn check(&self, tolerance: f64) {
        let output = self.run();
        for row in 0..self.kv_lens.len() {
            for token in 0..(self.query_start[row + 1] - self.query_start[row]) as usize {
                for head in 0..self.num_heads {
                    let start = ((self.query_start[row] as usize + token) * self.num_heads + head)
                        * self.head_dim;
                    for (n, expected) in self.expected(row, token, head).into_iter().enumerate() {
                        let got = f64::from(output[start + n]);
                        assert!(
                            (got - expected).abs() <= tolerance,
                            "row {row} token {token} head {head} [{n}]: {got}, not {expected}"
                        );
                    }
                }
            }
        }
    }
}

const LENS: &[(usize, usize)] = &[
    (1, 1),
    (1, 64),
    (1, 65),
    (1, 200),
    (5, 5),
    (70, 70),
    (3, 131),
    (100, 161),
];

#[test]
fn attention_equals_a_softmax_over_what_a_token_sees() {
    pool::start(2);
    let mut random = Random::new(1);
    with_every_instruction_set(|tolerance| {
        for heads in [
            (1, 1, 8),
            (3, 1, 64),
            (4, 2, 16),
            (8, 1, 96),
            (16, 1, 32),
            (2, 2, 128),
            (5, 1, 34),
            (2, 1, 256),
        ] {
            for (block_size, window) in [(16, 0), (48, 0), (32, 40), (16, 1)] {
                Case::random(&mut random, heads, (block_size, window), LENS).check(tolerance * 4.0);
            }
        }
    });
}

/// Scores of the keys of each tile: they rise by little, by much, and fall.
const LEVELS: [f32; 9] = [-60.0, -56.0, -40.0, 3.0, 9.0, 8.0, -70.0, 30.0, 29.0];

#[test]
fn scores_may_rise_and_fall_by_any_amount() {
    let mut random = Random::new(4);
    let (num_heads, num_kv_heads, head_dim) = (6, 2, 64);
    with_every_instruction_set(|_| {
        let len = LEVELS.len() * 64;
        let heads = (num_heads, num_kv_heads, head_dim);
        for query_len in [1, 5, len] {
            let mut case = Case::random(&mut random, heads, (16, 0), &[(query_len, len)]);
            for position in 0..len {
                for kv_head in 0..num_kv_heads {
                    for n in 0..head_dim {
                        let (key, _) = case.offsets(0, position, kv_head, n);
                        let level = if n == 0 { LEVELS[position / 64] } else { 0.0 };
                        case.keys[key] = bf16::from_f32(level);
                    }
                }
            }
            case.query.fill((head_dim as f32).sqrt());
            case.check(0.02); // queries of 8 bits, with scores up to 70
        }
    });
}

#[test]
fn few_rows_with_many_keys_equal_it_too() {
    let mut random = Random::new(3);
    with_every_instruction_set(|tolerance| {
        for lens in [&[(1, 700)][..], &[(3, 513), (1, 20)], &[(1, 256), (2, 257)]] {
            for window in [0, 1, 90, 300] {
                Case::random(&mut random, (6, 2, 64), (16, window), lens).check(tolerance * 4.0);
            }
        }
    });
}

#[test]
fn a_token_has_the_same_bits_however_its_prompt_is_cut() {
    let mut random = Random::new(2);
    with_every_instruction_set(|_| {
        for window in [0, 200] {
            let heads = (6, 2, 64);
            let whole = Case::random(&mut random, heads, (16, window), &[(600, 600)]);
            let output = whole.run();
            for query_len in [1, 2, 50, 599] {
                let mut part = Case {
                    query: Vec::new(),
                    query_start: vec![0, query_len as i32],
                    ..whole.clone()
                };
                let size = query_len * 6 * 64;
                part.query = whole.query[whole.query.len() - size..].to_vec();
                assert_eq!(
                    part.run(),
                    output[output.len() - size..],
                    "the last {query_len} tokens"
                );
            }
        }
    });
}

#[test]
fn a_token_has_the_same_bits_whatever_else_is_in_the_step() {
    let mut random = Random::new(5);
    with_every_instruction_set(|_| {
        let (num_heads, num_kv_heads, head_dim) = (6, 2, 64);
        // The chunk in the middle has nearly all of the work, and the last row most of what is left.
        let lens = [(1, 20), (1, 100), (40, 700), (1, 1), (1, 600)];
        let heads = (num_heads, num_kv_heads, head_dim);
        let whole = Case::random(&mut random, heads, (16, 0), &lens);
        let output = whole.run();
        for row in 0..lens.len() {
            let (start, end) = (whole.query_start[row], whole.query_start[row + 1]);
            let size = num_heads * head_dim;
            let tokens = start as usize * size..end as usize * size;
            let blocks = row * whole.max_blocks..(row + 1) * whole.max_blocks;
            let alone = Case {
                query_start: vec![0, end - start],
                kv_lens: vec![whole.kv_lens[row]],
                block_tables: whole.block_tables[blocks].to_vec(),
                query: whole.query[tokens.clone()].to_vec(),
                ..whole.clone()
            };
            assert_eq!(alone.run(), output[tokens], "row {row}");
        }
    });
}
