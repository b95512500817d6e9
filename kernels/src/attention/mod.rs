//! Causal attention over keys and values that stay where they are in the blocks of the KV cache: decode rows and chunks of
//! prompts alike.
//!
//! Keys are taken in tiles, and tiles in segments, that begin at multiples of their sizes from the start of the sequence. A
//! segment is computed by itself and segments are joined in order, so that the result of a token does not depend on how its
//! prompt was cut into chunks, on what else is in the step, or on which threads took which segments. Scores beyond a tile
//! never exist (online softmax, arXiv 1805.02867).

use std::cell::RefCell;
use std::ops::Range;

use crate::buffer::Scratch;
use crate::pool::Pool;
use crate::simd::{Kernel, Simd, dispatch};

mod division;
mod segment;
mod state;
mod tile;
mod workspace;

use division::{Divided, Division, Part};
use segment::SegmentWork;
use state::State;
use tile::Tile;
use workspace::Workspace;

/// Keys taken at once.
const TILE: usize = 64;
/// Keys whose sums are taken by themselves.
const SEGMENT: usize = 256;
/// Query rows (tokens times heads that share a KV head) of a task.
const TASK_ROWS: usize = 192;

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
    /// As `kv_layout` says, bf16 each.
    pub keys: *const u16,
    pub values: *const u16,
    /// A multiple of `kv_layout::CHUNK`.
    pub block_size: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    /// Even.
    pub head_dim: usize,
    /// How many tokens a token sees, itself included; 0 = all before it.
    pub sliding_window: usize,
}

// SAFETY: tasks write the outputs of different tokens and heads.
unsafe impl Sync for Attend {}

impl Attend {
    unsafe fn query_len(&self, row: usize) -> usize {
        (*self.rows.query_start.add(row + 1) - *self.rows.query_start.add(row)) as usize
    }

    /// Query heads that share a KV head.
    fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Some tokens of a row with the query heads of one KV head.
#[derive(Clone, Copy)]
struct Task {
    row: usize,
    kv_head: usize,
    /// Of the row's tokens in this step.
    first_token: usize,
    num_tokens: usize,
    /// Position of the first token in its sequence.
    first_position: usize,
    /// Of the row, this step's tokens included.
    kv_len: usize,
}

impl Task {
    fn num_rows(&self, attend: &Attend) -> usize {
        self.num_tokens * attend.group()
    }

    /// Keys that some token sees.
    fn seen(&self, attend: &Attend) -> Range<usize> {
        let window = attend.sliding_window;
        let start = if window == 0 {
            0
        } else {
            (self.first_position + 1).saturating_sub(window)
        };
        start..self.first_position + self.num_tokens
    }

    fn segments(&self, attend: &Attend) -> Range<usize> {
        let seen = self.seen(attend);
        seen.start / SEGMENT..seen.end.div_ceil(SEGMENT)
    }

    /// The first key of the first tile of a segment.
    fn first_tile(&self, attend: &Attend, segment: usize) -> usize {
        (segment * SEGMENT).max(self.seen(attend).start / TILE * TILE)
    }

    /// The number of this step's token and the query head of a row of the task.
    unsafe fn token_and_head(&self, attend: &Attend, row: usize) -> (usize, usize) {
        let group = attend.group();
        let token = *attend.rows.query_start.add(self.row) as usize + self.first_token;
        (token + row / group, self.kv_head * group + row % group)
    }
}

/// # Safety
/// The pointers hold what `Attend` says, and the tokens' own keys and values are in the cache.
pub unsafe fn attend(pool: &mut Pool, attend: Attend) {
    let division = Division::new(&attend, &list_tasks(&attend), pool.num_threads());
    STATES.with_borrow_mut(|memory| {
        let states = States::new(memory, &attend, &division);
        pool.run(division.groups.len(), &|n| {
            SCRATCH.with_borrow_mut(|scratch| {
                dispatch(ComputeParts {
                    attend: &attend,
                    parts: &division.parts[division.groups[n].clone()],
                    scratch,
                    states: &states,
                });
            });
        });
        pool.run(division.divided.len(), &|n| {
            dispatch(JoinSegments {
                attend: &attend,
                divided: &division.divided[n],
                joined: states.get(division.num_states + n),
                states: &states,
            })
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Of the calling thread.
    static STATES: RefCell<Scratch> = RefCell::default();
}

unsafe fn list_tasks(attend: &Attend) -> Vec<Task> {
    let tokens_per_task = (TASK_ROWS / attend.group()).max(1);
    let mut tasks = Vec::new();
    for row in 0..attend.rows.num_rows {
        let query_len = attend.query_len(row);
        let kv_len = *attend.rows.kv_lens.add(row) as usize;
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
                    first_position: kv_len - query_len + first_token,
                    kv_len,
                });
            }
            end = first_token;
        }
    }
    tasks
}

/// Some parts, one after the other. Each thread knows what it will read next.
struct ComputeParts<'a> {
    attend: &'a Attend,
    parts: &'a [Part],
    scratch: &'a mut Scratch,
    states: &'a States,
}

impl Kernel for ComputeParts<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let attend = self.attend;
        for (n, part) in self.parts.iter().enumerate() {
            let next = self.parts.get(n + 1);
            let next = next.map(|next| (&next.task, next.segments.start));
            let task = &part.task;
            let mut space = Workspace::new(self.scratch, task.num_rows(attend), attend.head_dim);
            if let Some(state) = part.state {
                space.current = self.states.get(state);
                let after = first_tile(attend, &space, next);
                let work = SegmentWork::begin::<S>(attend, *task, &space);
                work.compute::<S>(part.segments.start, after);
                continue;
            }
            let work = SegmentWork::begin::<S>(attend, *task, &space);
            space.joined.clear();
            for segment in part.segments.clone() {
                let following = if segment + 1 < part.segments.end {
                    Some((task, segment + 1))
                } else {
                    next
                };
                work.compute::<S>(segment, first_tile(attend, &space, following));
                space.joined.join::<S>(space.current);
            }
            write_outputs::<S>(attend, task, space.joined);
        }
    }
}

#[inline(always)]
unsafe fn first_tile(
    attend: &Attend,
    space: &Workspace,
    next: Option<(&Task, usize)>,
) -> Option<Tile> {
    let (task, segment) = next?;
    let first = task.first_tile(attend, segment);
    Some(Tile::in_place(attend, task, space, first))
}

/// Room for the states of segments that are parts of their own, and then for what they become when they are joined.
struct States {
    start: *mut f32,
    floats: usize,
    num_rows: usize,
    head_dim: usize,
}

// SAFETY: each is written by one part, and read only when all of those are done.
unsafe impl Sync for States {}

impl States {
    fn new(memory: &mut Scratch, attend: &Attend, division: &Division) -> Self {
        let num_rows = (division.divided.iter())
            .map(|divided| divided.task.num_rows(attend))
            .max()
            .unwrap_or(0);
        let floats = State::num_floats(num_rows, attend.head_dim);
        let num_states = division.num_states + division.divided.len();
        Self {
            start: memory.at_least(num_states * floats * 4).as_ptr(),
            floats,
            num_rows,
            head_dim: attend.head_dim,
        }
    }

    unsafe fn get(&self, n: usize) -> State {
        State::new(
            self.start.add(n * self.floats),
            self.num_rows,
            self.head_dim,
        )
    }
}

struct JoinSegments<'a> {
    attend: &'a Attend,
    divided: &'a Divided,
    joined: State,
    states: &'a States,
}

impl Kernel for JoinSegments<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let num_rows = self.divided.task.num_rows(self.attend);
        let joined = self.joined.of_rows(num_rows);
        joined.clear();
        for state in self.divided.states.clone() {
            joined.join::<S>(self.states.get(state).of_rows(num_rows));
        }
        write_outputs::<S>(self.attend, &self.divided.task, joined);
    }
}

#[inline(always)]
unsafe fn write_outputs<S: Simd>(attend: &Attend, task: &Task, state: State) {
    for row in 0..state.num_rows {
        let (token, head) = task.token_and_head(attend, row);
        let to = attend
            .output
            .add((token * attend.num_heads + head) * attend.head_dim);
        let from = state.sums(row);
        let total = S::sum(S::load(state.totals(row)));
        for n in 0..attend.head_dim {
            *to.add(n) = *from.add(n) / total;
        }
    }
}
