//! A few threads that live as long as the process and share the tasks of one kernel at a time.
//!
//! Every thread has a range of its own of a kernel's tasks, so that it reads memory in a row and finds in its cache what it
//! left there, and takes from the others' ranges when its own is done.
//!
//! A decode step at batch 1 is hundreds of kernels of a few microseconds each, so that a worker watches for the next one for
//! a moment before it sleeps, and the caller never waits for a worker that has not come: it does the tasks itself.

use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How long a worker watches for work. Between two kernels of a step lie a few microseconds, between steps far more.
const WATCH: Duration = Duration::from_micros(60);

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Whether there are tasks to take. A worker looks at `job` only between adding itself to `num_inside` and seeing this.
    is_open: AtomicBool,
    num_inside: AtomicUsize,
    /// The next task of each thread's range.
    next_tasks: Vec<NextTask>,
    job: UnsafeCell<Option<(usize, Task<'static>)>>,
}

/// In a cache line of its own.
#[repr(align(128))]
struct NextTask(AtomicUsize);

// SAFETY: `job` is written only while `is_open` is false and nobody is inside, and read only by workers that are inside
// after they saw `is_open`.
unsafe impl Sync for Shared {}

struct Worker {
    thread: Thread,
    is_asleep: AtomicBool,
}

pub struct Pool {
    shared: &'static Shared,
    workers: Vec<&'static Worker>,
}

static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();

/// Starts `num_threads - 1` workers; the caller of a kernel is the last thread. Only the first call does anything.
pub fn start(num_threads: usize) {
    POOL.get_or_init(|| Mutex::new(Pool::new(num_threads.max(1))));
}

/// The pool of the process, one caller at a time. One thread unless `start` was called before.
pub fn lock() -> MutexGuard<'static, Pool> {
    let pool = POOL.get_or_init(|| Mutex::new(Pool::new(1)));
    // A panic in a kernel ends the process, since no panic crosses the C interface.
    pool.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Pool {
    fn new(num_threads: usize) -> Self {
        let shared = Box::leak(Box::new(Shared {
            is_open: AtomicBool::new(false),
            num_inside: AtomicUsize::new(0),
            next_tasks: (0..num_threads)
                .map(|_| NextTask(AtomicUsize::new(0)))
                .collect(),
            job: UnsafeCell::new(None),
        }));
        let workers = (1..num_threads)
            .filter_map(|n| start_worker(n, shared))
            .collect();
        Self { shared, workers }
    }

    pub fn num_threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// The tasks that a thread takes first, of so many.
    pub fn tasks_of(&self, thread: usize, num_tasks: usize) -> Range<usize> {
        share(num_tasks, thread, self.shared.next_tasks.len())
    }

    /// Calls `task` with every number below `num_tasks`, once each, on all threads, and returns when all are done.
    pub fn run(&mut self, num_tasks: usize, task: Task<'_>) {
        if num_tasks <= 1 || self.workers.is_empty() {
            (0..num_tasks).for_each(task);
            return;
        }
        // SAFETY: nobody reads the job after this function: it waits until nobody is inside.
        unsafe {
            *self.shared.job.get() = Some((
                num_tasks,
                std::mem::transmute::<Task<'_>, Task<'static>>(task),
            ));
        }
        for (thread, next) in self.shared.next_tasks.iter().enumerate() {
            next.0.store(self.tasks_of(thread, num_tasks).start, SeqCst);
        }
        self.shared.is_open.store(true, SeqCst);
        for worker in self.workers.iter().take(num_tasks - 1) {
            if worker.is_asleep.swap(false, SeqCst) {
                worker.thread.unpark();
            }
        }
        take_tasks(self.shared, 0, num_tasks, task);
        self.shared.is_open.store(false, SeqCst);
        while self.shared.num_inside.load(SeqCst) > 0 {
            spin_loop();
        }
    }
}

/// Part number `part` of `0..count`, of so many parts of about the same size.
pub fn share(count: usize, part: usize, num_parts: usize) -> Range<usize> {
    count * part / num_parts..count * (part + 1) / num_parts
}

fn take_tasks(shared: &Shared, thread: usize, num_tasks: usize, task: Task<'_>) {
    let num_threads = shared.next_tasks.len();
    for owner in (thread..num_threads).chain(0..thread) {
        let end = share(num_tasks, owner, num_threads).end;
        loop {
            let next = shared.next_tasks[owner].0.fetch_add(1, SeqCst);
            if next >= end {
                break;
            }
            task(next);
        }
    }
}

/// None where the system has no thread to give; the others do its work.
fn start_worker(number: usize, shared: &'static Shared) -> Option<&'static Worker> {
    let (give, take) = std::sync::mpsc::channel::<&'static Worker>();
    let named = thread::Builder::new().name(format!("kernels-{number}"));
    let handle = named
        .spawn(move || {
            if let Ok(worker) = take.recv() {
                work(shared, number, worker);
            }
        })
        .ok()?;
    let worker = Box::leak(Box::new(Worker {
        thread: handle.thread().clone(),
        is_asleep: AtomicBool::new(false),
    }));
    give.send(worker).ok()?;
    Some(worker)
}

fn work(shared: &'static Shared, number: usize, worker: &'static Worker) -> ! {
    let mut idle_since = Instant::now();
    let mut turns = 0_u32;
    loop {
        if shared.is_open.load(SeqCst) {
            shared.num_inside.fetch_add(1, SeqCst);
            // Only now may the job be read: either this sees that it is closed, or the caller sees somebody inside.
            if shared.is_open.load(SeqCst) {
                // SAFETY: see `Shared`.
                if let Some((num_tasks, task)) = unsafe { *shared.job.get() } {
                    take_tasks(shared, number, num_tasks, task);
                }
            }
            shared.num_inside.fetch_sub(1, SeqCst);
            while shared.is_open.load(SeqCst) {
                spin_loop(); // the tasks are gone, and the caller is about to close
            }
            idle_since = Instant::now();
            turns = 0;
            continue;
        }
        spin_loop();
        turns = turns.wrapping_add(1);
        if turns.is_multiple_of(64) && idle_since.elapsed() > WATCH {
            worker.is_asleep.store(true, SeqCst);
            // Looked at again after the announcement, so that no caller's work is missed.
            if !shared.is_open.load(SeqCst) {
                thread::park();
            }
            worker.is_asleep.store(false, SeqCst);
            idle_since = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_however_many_follow_each_other() {
        let mut pool = Pool::new(4);
        for round in 0..2_000 {
            let num_tasks = round % 37;
            let counts: Vec<AtomicUsize> = (0..num_tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(num_tasks, &|task| {
                counts[task].fetch_add(1, SeqCst);
            });
            assert!(
                counts.iter().all(|count| count.load(SeqCst) == 1),
                "in round {round}"
            );
        }
    }

    #[test]
    fn workers_that_fell_asleep_come_back() {
        let mut pool = Pool::new(2);
        for _ in 0..20 {
            while !pool.workers[0].is_asleep.load(SeqCst) {
                thread::yield_now();
            }
            let caller = thread::current().id();
            let others = AtomicUsize::new(0);
            // The first task does not end before another thread has come.
            pool.run(2, &|_| {
                if thread::current().id() == caller {
                    while others.load(SeqCst) == 0 {
                        spin_loop();
                    }
                } else {
                    others.fetch_add(1, SeqCst);
                }
            });
            assert!(others.load(SeqCst) >= 1);
        }
    }
}
