//! Causal attention over keys and values that stay where they are in the blocks of the KV cache: decode rows and chunks of
//! prompts alike.
//!
//! Keys are taken in tiles that begin at multiples of `TILE` from the start of the sequence, in order, so that the result of
//! a token does not depend on how its prompt was cut into chunks or what else is in the step. Within a tile, scores and
//! weighted sums are products of packed panels as in a linear layer. Scores beyond a tile never exist (online softmax,
//! arXiv 1805.02867).

use std::cell::RefCell;

use crate::buffer::Scratch;
use crate::packed::PANEL;
use crate::pool::Pool;
use crate::products::{Ahead, Bf16Products, Products, Tile, VECTORS, with_count};
use crate::simd::{Kernel, LANES, Simd, dispatch, exp};

mod tiles;
mod workspace;

use tiles::{pack_keys, pack_values, tile_offsets};
use workspace::{VALUE_PANEL_BYTES, Workspace};

/// Keys taken at once.
const TILE: usize = 2 * PANEL;
/// Query rows (tokens times heads that share a KV head) for which a task packs each tile once.
const TASK_ROWS: usize = 192;
/// Most rows of a product.
const MAX_ROWS: usize = 12;

/// The rows of a step, the same for all layers.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Rows {
    /// [rows + 1] row i's tokens of this step are [query_start[i], query_start[i + 1]).
    pub query_start: *const i32,
    /// [rows] tokens of each row in the cache, this step's included.
    pub kv_lens: *const i32,
    /// [rows, max_blocks] blocks of each row in order.
    pub block_tables: *const i32,
    pub num_rows: usize,
    pub max_blocks: usize,
}

/// One layer.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Attend {
    pub rows: Rows,
    /// [tokens, ...] float32; head h of token t is at `query + t * query_stride + h * D`.
    pub query: *const f32,
    pub query_stride: usize,
    /// [tokens, H, D] float32.
    pub output: *mut f32,
    /// [blocks, block_size, KH, D] bf16 each.
    pub keys: *const u16,
    pub values: *const u16,
    pub block_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// How many tokens a token sees, itself included; 0 = all before it.
    pub sliding_window: usize,
}

// SAFETY: tasks write the outputs of different tokens and heads.
unsafe impl Sync for Attend {}

/// Some tokens of a row with the query heads of one KV head.
#[derive(Clone, Copy)]
struct Task {
    row: usize,
    kv_head: usize,
    /// Of the row's tokens in this step.
    first_token: usize,
    num_tokens: usize,
}

/// # Safety
/// The pointers hold what `Attend` says, and the tokens' own keys and values are in the cache.
pub unsafe fn attend(pool: &mut Pool, attend: Attend) {
    let tasks = list_tasks(&attend);
    pool.run(tasks.len(), &|n| {
        SCRATCH.with_borrow_mut(|scratch| {
            dispatch(AttendTask {
                attend: &attend,
                task: tasks[n],
                scratch,
            })
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

unsafe fn list_tasks(attend: &Attend) -> Vec<Task> {
    let group = attend.num_heads / attend.num_kv_heads;
    let tokens_per_task = (TASK_ROWS / group).max(1);
    let mut tasks = Vec::new();
    for row in 0..attend.rows.num_rows {
        let query_len =
            (*attend.rows.query_start.add(row + 1) - *attend.rows.query_start.add(row)) as usize;
        // The last tokens see most: the longest tasks come first, so that no thread begins one at the end.
        let mut end = query_len;
        while end > 0 {
            let first_token = end.saturating_sub(tokens_per_task);
            for kv_head in 0..attend.num_kv_heads {
                tasks.push(Task {
                    row,
                    kv_head,
                    first_token,
                    num_tokens: end - first_token,
                });
            }
            end = first_token;
        }
    }
    tasks
}

struct AttendTask<'a> {
    attend: &'a Attend,
    task: Task,
    scratch: &'a mut Scratch,
}

impl Kernel for AttendTask<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self {
            attend,
            task,
            scratch,
        } = self;
        let group = attend.num_heads / attend.num_kv_heads;
        let num_rows = task.num_tokens * group;
        let space = Workspace::new(scratch, num_rows, attend.head_dim);
        for row in 0..num_rows {
            pack_query::<S>(attend, &task, &space, row);
        }
        let kv_len = *attend.rows.kv_lens.add(task.row) as usize;
        let first_position = kv_len - attend.query_len(task.row) + task.first_token;
        let num_seen = first_position + task.num_tokens; // keys before the end of the last token
        let low = if attend.sliding_window == 0 {
            0
        } else {
            (first_position + 1).saturating_sub(attend.sliding_window)
        };
        for tile in (low / TILE * TILE..num_seen).step_by(TILE) {
            let offsets = tile_offsets(attend, &task, (tile, kv_len));
            pack_keys::<S>(attend, &space, &offsets);
            pack_values::<S>(attend, &space, &offsets);
            let mut row = 0;
            while row < num_rows {
                let count = (num_rows - row).min(S::ROWS[1]);
                let part = Part {
                    attend,
                    space: &space,
                    tile,
                    first_position,
                    group,
                    row,
                };
                with_count!(count, 2, |M| part.add_tile::<S, M>());
                row += count;
            }
        }
        for row in 0..num_rows {
            write_output(attend, &task, &space, row);
        }
    }
}

impl Attend {
    unsafe fn query_len(&self, row: usize) -> usize {
        (*self.rows.query_start.add(row + 1) - *self.rows.query_start.add(row)) as usize
    }

    /// The number of this step's token and the query head of a task's row.
    unsafe fn token_and_head(&self, task: &Task, row: usize) -> (usize, usize) {
        let group = self.num_heads / self.num_kv_heads;
        let token = *self.rows.query_start.add(task.row) as usize + task.first_token + row / group;
        (token, task.kv_head * group + row % group)
    }
}

#[inline(always)]
unsafe fn pack_query<S: Simd>(attend: &Attend, task: &Task, space: &Workspace, row: usize) {
    let (token, head) = attend.token_and_head(task, row);
    let from = attend
        .query
        .add(token * attend.query_stride + head * attend.head_dim);
    let sums = space.sums.add(row * space.num_columns);
    // The sums are not used yet: room for the scaled query.
    let scale = 1.0 / (attend.head_dim as f32).sqrt();
    for n in 0..attend.head_dim {
        *sums.add(n) = *from.add(n) * scale;
    }
    Bf16Products::pack_row::<S>(
        sums,
        attend.head_dim,
        space.queries.add(row * space.query_bytes),
    );
    std::slice::from_raw_parts_mut(sums, space.num_columns).fill(0.0);
    *space.highest.add(row) = f32::NEG_INFINITY;
    *space.total.add(row) = 0.0;
}

/// Some rows of a task and one tile.
struct Part<'a> {
    attend: &'a Attend,
    space: &'a Workspace,
    tile: usize,
    first_position: usize,
    group: usize,
    row: usize,
}

impl Part<'_> {
    #[inline(always)]
    unsafe fn add_tile<S: Simd, const M: usize>(&self) {
        let space = self.space;
        let scores = Bf16Products::tile::<S, M, 2>(Tile {
            rows: space.queries.add(self.row * space.query_bytes),
            row_bytes: space.query_bytes,
            panel: space.keys.cast(),
            panel_bytes: space.key_panel_bytes,
            in_features: self.attend.head_dim,
            exponents: std::ptr::null(),
            ahead: Ahead::Nothing,
        });
        let mut factors = [0.0; M];
        for m in 0..M {
            let to = space.scores.add(m * TILE);
            for n in 0..2 * VECTORS {
                S::store(to.add(n * LANES), scores[m][n / VECTORS][n % VECTORS]);
            }
            self.hide(m, to);
            factors[m] = self.exponentials::<S>(m, to);
        }
        for panel in (0..space.num_columns / PANEL).step_by(2) {
            if (panel + 1) * PANEL < space.num_columns {
                self.add_values::<S, M, 2>(panel, &factors);
            } else {
                self.add_values::<S, M, 1>(panel, &factors);
            }
        }
    }

    /// Minus infinity for what a row must not see.
    #[inline(always)]
    unsafe fn hide(&self, m: usize, scores: *mut f32) {
        let position = self.first_position + (self.row + m) / self.group;
        let end = (position + 1).saturating_sub(self.tile).min(TILE);
        for key in end..TILE {
            *scores.add(key) = f32::NEG_INFINITY;
        }
        let window = self.attend.sliding_window;
        if window > 0 && position >= window {
            let start = (position - window + 1).saturating_sub(self.tile).min(TILE);
            for key in 0..start {
                *scores.add(key) = f32::NEG_INFINITY;
            }
        }
    }

    /// Turns scores into packed weights relative to the highest score so far. -> factor for the sums before
    #[inline(always)]
    unsafe fn exponentials<S: Simd>(&self, m: usize, scores: *mut f32) -> f32 {
        let (highest, total) = (
            self.space.highest.add(self.row + m),
            self.space.total.add(self.row + m),
        );
        let mut largest = S::load(scores);
        for n in (LANES..TILE).step_by(LANES) {
            largest = S::max(largest, S::load(scores.add(n)));
        }
        let new_highest = S::max_lane(largest).max(*highest);
        // A row that has seen nothing yet: any finite number makes its weights zero.
        let reference = if new_highest == f32::NEG_INFINITY {
            0.0
        } else {
            new_highest
        };
        let mut sum = S::splat(0.0);
        for n in (0..TILE).step_by(LANES) {
            let weight = exp::<S>(S::sub(S::load(scores.add(n)), S::splat(reference)));
            sum = S::add(sum, weight);
            S::store(scores.add(n), weight);
        }
        Bf16Products::pack_row::<S>(
            scores,
            TILE,
            self.space.weights.add(m * Bf16Products::row_bytes(TILE)),
        );
        let factor = if *highest == f32::NEG_INFINITY {
            0.0
        } else {
            (*highest - reference).exp()
        };
        *total = *total * factor + S::sum(sum);
        *highest = new_highest;
        factor
    }

    #[inline(always)]
    unsafe fn add_values<S: Simd, const M: usize, const N: usize>(
        &self,
        panel: usize,
        factors: &[f32; M],
    ) {
        let space = self.space;
        let products = Bf16Products::tile::<S, M, N>(Tile {
            rows: space.weights,
            row_bytes: Bf16Products::row_bytes(TILE),
            panel: space.values.byte_add(panel * VALUE_PANEL_BYTES).cast(),
            panel_bytes: VALUE_PANEL_BYTES,
            in_features: TILE,
            exponents: std::ptr::null(),
            ahead: Ahead::Nothing,
        });
        for m in 0..M {
            let to = space
                .sums
                .add((self.row + m) * space.num_columns + panel * PANEL);
            for n in 0..N * VECTORS {
                let (before, product) = (
                    S::load(to.add(n * LANES)),
                    products[m][n / VECTORS][n % VECTORS],
                );
                S::store(
                    to.add(n * LANES),
                    S::fma(before, S::splat(factors[m]), product),
                );
            }
        }
    }
}

#[inline(always)]
unsafe fn write_output(attend: &Attend, task: &Task, space: &Workspace, row: usize) {
    let (token, head) = attend.token_and_head(task, row);
    let to = attend
        .output
        .add((token * attend.num_heads + head) * attend.head_dim);
    let from = space.sums.add(row * space.num_columns);
    let total = *space.total.add(row);
    for n in 0..attend.head_dim {
        *to.add(n) = *from.add(n) / total;
    }
}
