//! How the work of a step is divided among threads: into groups that take about as long as each other. A step may have rows of
//! one token and a chunk of a prompt with a thousand times their work, so that what counts is time and not tasks.

use std::ops::Range;

use super::{Attend, Task};

/// Groups for each thread: small enough that all threads end at about the same time.
const GROUPS_PER_THREAD: usize = 4;
/// What reading a key costs, beside the rows that it is multiplied with.
const KEY_COST: usize = 4;

/// A task, or one of its segments.
pub(super) struct Part {
    pub(super) task: Task,
    pub(super) segments: Range<usize>,
    /// Where the state of the segment is left, for one of a divided task.
    pub(super) state: Option<usize>,
}

/// A task whose segments are parts of their own, to be joined.
pub(super) struct Divided {
    pub(super) task: Task,
    pub(super) states: Range<usize>,
}

pub(super) struct Division {
    pub(super) parts: Vec<Part>,
    /// Of `parts`.
    pub(super) groups: Vec<Range<usize>>,
    pub(super) divided: Vec<Divided>,
    pub(super) num_states: usize,
}

impl Division {
    /// Tasks that would take longer than a group are divided.
    pub(super) fn new(attend: &Attend, tasks: &[Task], num_threads: usize) -> Self {
        let total: usize = tasks.iter().map(|task| cost(attend, task)).sum();
        let num_groups = num_threads * GROUPS_PER_THREAD;
        let mut division = Self {
            parts: Vec::with_capacity(tasks.len()),
            groups: Vec::with_capacity(num_groups),
            divided: Vec::new(),
            num_states: 0,
        };
        // In units of 1 / num_groups, so that nothing is rounded.
        let mut costs = Vec::with_capacity(tasks.len());
        for task in tasks {
            let segments = task.segments(attend);
            let cost = cost(attend, task) * num_groups;
            if num_threads > 1 && segments.len() > 1 && cost > total {
                costs.extend(segments.clone().map(|_| cost / segments.len()));
                division.divide(task, segments);
            } else {
                costs.push(cost);
                division.parts.push(Part {
                    task: *task,
                    segments,
                    state: None,
                });
            }
        }
        division.group(&costs, total);
        division
    }

    fn divide(&mut self, task: &Task, segments: Range<usize>) {
        let first = self.num_states;
        self.num_states += segments.len();
        self.divided.push(Divided {
            task: *task,
            states: first..self.num_states,
        });
        self.parts
            .extend(segments.enumerate().map(|(n, segment)| Part {
                task: *task,
                segments: segment..segment + 1,
                state: Some(first + n),
            }));
    }

    /// Ends a group where it costs `group_cost`, or is nearer to that without the next part.
    fn group(&mut self, costs: &[usize], group_cost: usize) {
        let (mut start, mut given, mut due) = (0, 0, group_cost);
        for (n, cost) in costs.iter().enumerate() {
            if n > start && given + cost / 2 >= due {
                self.groups.push(start..n);
                start = n;
                due = given + group_cost;
            }
            given += cost;
        }
        if start < costs.len() {
            self.groups.push(start..costs.len());
        }
    }
}

/// About how long a task takes.
fn cost(attend: &Attend, task: &Task) -> usize {
    task.seen(attend).len() * (task.num_rows(attend) + KEY_COST)
}

#[cfg(test)]
mod tests {
    use super::super::{Rows, list_tasks};
    use super::*;
    use std::ptr::{null, null_mut};

    /// Of rows of (tokens in the step, tokens in the cache), with the cost of each group.
    fn divide(lens: &[(usize, usize)], num_threads: usize) -> (Division, Vec<Task>, Vec<usize>) {
        let mut query_start = vec![0_i32];
        for (query_len, _) in lens {
            query_start.push(query_start[query_start.len() - 1] + *query_len as i32);
        }
        let kv_lens: Vec<i32> = lens.iter().map(|(_, kv_len)| *kv_len as i32).collect();
        let attend = Attend {
            rows: Rows {
                query_start: query_start.as_ptr(),
                kv_lens: kv_lens.as_ptr(),
                block_tables: null(),
                num_rows: lens.len(),
                max_blocks: 0,
            },
            query: null(),
            query_stride: 0,
            output: null_mut(),
            keys: null(),
            values: null(),
            block_size: 16,
            num_heads: 9,
            num_kv_heads: 3,
            head_dim: 64,
            sliding_window: 0,
        };
        // SAFETY: only the lengths are read.
        let tasks = unsafe { list_tasks(&attend) };
        let division = Division::new(&attend, &tasks, num_threads);
        let part_cost = |part: &Part| {
            let num_segments = part.task.segments(&attend).len();
            cost(&attend, &part.task) * part.segments.len() / num_segments
        };
        let costs = (division.groups.iter())
            .map(|group| division.parts[group.clone()].iter().map(part_cost).sum())
            .collect();
        (division, tasks, costs)
    }

    const STEPS: [&[(usize, usize)]; 6] = [
        &[],
        &[(1, 1)],
        &[(1, 2048)],
        &[(512, 512), (1, 1)],
        &[(1, 160), (1, 160), (16, 2048), (1, 90)],
        &[(64, 1088), (64, 1088), (64, 1088), (3, 3), (1, 300)],
    ];

    #[test]
    fn every_segment_of_every_task_is_in_one_group_and_joined_in_order() {
        for (lens, num_threads) in STEPS
            .iter()
            .flat_map(|lens| [(lens, 1), (lens, 2), (lens, 7)])
        {
            let (division, tasks, _) = divide(lens, num_threads);
            let in_groups: Vec<usize> = division.groups.iter().cloned().flatten().collect();
            assert_eq!(in_groups, Vec::from_iter(0..division.parts.len()));
            let mut segments: Vec<usize> = Vec::new();
            let mut states = Vec::new();
            for part in &division.parts {
                segments.extend(part.segments.clone());
                states.extend(part.state);
            }
            assert_eq!(states, Vec::from_iter(0..division.num_states));
            let joined: Vec<usize> = (division.divided.iter())
                .flat_map(|divided| divided.states.clone())
                .collect();
            assert_eq!(joined, states);
            let wanted: Vec<usize> = (tasks.iter())
                .flat_map(|task| {
                    0..task
                        .kv_len
                        .min(task.first_position + task.num_tokens)
                        .div_ceil(256)
                })
                .collect();
            assert_eq!(segments, wanted, "{lens:?} on {num_threads} threads");
        }
    }

    #[test]
    fn a_chunk_with_most_of_the_work_is_shared_out_beside_rows_of_one_token() {
        let mut lens = vec![(1, 160); 16];
        lens.push((16, 2048));
        let (division, _, costs) = divide(&lens, 2);
        assert_eq!(division.divided.len(), 3, "one for each KV head");
        let total: usize = costs.iter().sum();
        let most = costs.iter().max();
        assert!(most.is_some_and(|most| *most < total / 6), "{costs:?}");
    }

    #[test]
    fn one_thread_divides_no_task_and_many_alike_are_not_divided() {
        assert!(divide(&[(1, 2048)], 1).0.divided.is_empty());
        assert!(divide(&[(1, 1088); 8], 2).0.divided.is_empty());
        assert_eq!(divide(&[(1, 2048)], 2).0.divided.len(), 3);
    }
}
