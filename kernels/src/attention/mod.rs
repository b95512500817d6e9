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
use crate::pool::{self, Pool};
use crate::simd::{Kernel, Simd, dispatch};

mod segment;
mod state;
mod tile;
mod workspace;

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
/// Below so many tasks for each thread, segments become tasks of their own.
const TASKS_PER_THREAD: usize = 4;
/// Parts that the work is divided into, for each thread: the last ones are small enough to end at about the same time.
const GROUPS_PER_THREAD: usize = 4;

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
    let tasks = list_tasks(&attend);
    if tasks.len() < pool.num_threads() * TASKS_PER_THREAD
        && tasks.iter().any(|task| task.segments(&attend).len() > 1)
    {
        return attend_by_segments(pool, &attend, &tasks);
    }
    run_groups(pool, tasks.len(), &|group, scratch| {
        dispatch(WholeTasks {
            attend: &attend,
            tasks: &tasks[group],
            scratch,
        });
    });
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Calls `work` with parts of 0..count, each on one thread, which knows what it will read next.
fn run_groups(pool: &mut Pool, count: usize, work: &(dyn Fn(Range<usize>, &mut Scratch) + Sync)) {
    let num_groups = count.min(pool.num_threads() * GROUPS_PER_THREAD);
    pool.run(num_groups, &|n| {
        let group = pool::share(count, n, num_groups);
        SCRATCH.with_borrow_mut(|scratch| work(group, scratch));
    });
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

/// Tasks from their first segments to their outputs.
struct WholeTasks<'a> {
    attend: &'a Attend,
    tasks: &'a [Task],
    scratch: &'a mut Scratch,
}

impl Kernel for WholeTasks<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let attend = self.attend;
        for (n, task) in self.tasks.iter().enumerate() {
            let space = Workspace::new(self.scratch, task.num_rows(attend), attend.head_dim);
            let work = SegmentWork::begin::<S>(attend, *task, &space);
            space.joined.clear();
            let segments = task.segments(attend);
            for segment in segments.clone() {
                let next = if segment + 1 < segments.end {
                    Some((task, segment + 1))
                } else {
                    let next = self.tasks.get(n + 1);
                    next.map(|next| (next, next.segments(attend).start))
                };
                work.compute::<S>(segment, first_tile(attend, &space, next));
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

/// Few rows with many keys: every segment is a task, then every task joins its own.
unsafe fn attend_by_segments(pool: &mut Pool, attend: &Attend, tasks: &[Task]) {
    let parts: Vec<(Task, usize)> = (tasks.iter())
        .flat_map(|task| task.segments(attend).map(move |segment| (*task, segment)))
        .collect();
    let num_rows = tasks.iter().map(|task| task.num_rows(attend)).max();
    let num_rows = num_rows.unwrap_or(0);
    let part_floats = State::num_floats(num_rows, attend.head_dim);
    let mut memory = vec![0_f32; part_floats * (parts.len() + tasks.len())];
    let states = States {
        start: memory.as_mut_ptr(),
        part_floats,
        num_rows,
        head_dim: attend.head_dim,
    };
    run_groups(pool, parts.len(), &|group, scratch| {
        dispatch(Segments {
            attend,
            parts: &parts,
            group,
            scratch,
            results: &states,
        });
    });
    let mut first = 0;
    let firsts: Vec<usize> = (tasks.iter())
        .map(|task| {
            first += task.segments(attend).len();
            first - task.segments(attend).len()
        })
        .collect();
    pool.run(tasks.len(), &|n| {
        dispatch(JoinSegments {
            attend,
            task: tasks[n],
            parts: firsts[n]..firsts[n] + tasks[n].segments(attend).len(),
            joined: states.get(parts.len() + n),
            states: &states,
        })
    });
}

/// Room for the states of many parts.
struct States {
    start: *mut f32,
    part_floats: usize,
    num_rows: usize,
    head_dim: usize,
}

// SAFETY: each is written by one task, and read only when all of those are done.
unsafe impl Sync for States {}

impl States {
    unsafe fn get(&self, n: usize) -> State {
        State::new(
            self.start.add(n * self.part_floats),
            self.num_rows,
            self.head_dim,
        )
    }
}

struct Segments<'a> {
    attend: &'a Attend,
    parts: &'a [(Task, usize)],
    group: Range<usize>,
    scratch: &'a mut Scratch,
    results: &'a States,
}

impl Kernel for Segments<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let attend = self.attend;
        for n in self.group.clone() {
            let (task, segment) = self.parts[n];
            let mut space = Workspace::new(self.scratch, task.num_rows(attend), attend.head_dim);
            space.current = self.results.get(n);
            let next = (n + 1 < self.group.end).then(|| &self.parts[n + 1]);
            let after = first_tile(attend, &space, next.map(|(task, segment)| (task, *segment)));
            SegmentWork::begin::<S>(attend, task, &space).compute::<S>(segment, after);
        }
    }
}

struct JoinSegments<'a> {
    attend: &'a Attend,
    task: Task,
    parts: Range<usize>,
    joined: State,
    states: &'a States,
}

impl Kernel for JoinSegments<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let num_rows = self.task.num_rows(self.attend);
        let joined = self.joined.of_rows(num_rows);
        joined.clear();
        for part in self.parts {
            joined.join::<S>(self.states.get(part).of_rows(num_rows));
        }
        write_outputs::<S>(self.attend, &self.task, joined);
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
