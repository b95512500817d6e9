//! Steps that are observed: what prefill they then have while others decode. Times come from a made-up machine, never from a clock.

use std::time::Duration;

use super::clocked::{ACCELERATOR, CPU, Clocked, LIMIT, Machine, Step};
use super::random::Random;
use super::reference_shard::ReferenceShard;
use super::{id, invariants, rows, spec};
use crate::plan::MIN_PREFILL_TOKENS;
use crate::{Scheduler, SchedulerConfig, SequenceEvent};

#[test]
fn nothing_observed_leaves_the_whole_budget() {
    let mut clocked = Clocked::new(CPU, 1);
    clocked.add(2000, 5);
    clocked.run(3);
    assert_eq!(clocked.chunks(), [512, 512, 512]);
}

#[test]
fn prompts_alone_are_computed_in_steps_that_are_long_beside_the_smallest_and_no_longer() {
    for (machine, least, most) in [(CPU, 150, 270), (ACCELERATOR, LIMIT, LIMIT)] {
        let mut clocked = Clocked::new(machine, 1);
        clocked.add(2000, 5);
        clocked.run(100);
        // All is known of this machine by now.
        clocked.steps.clear();
        clocked.add(2000, 5);
        clocked.run(4);
        let chunks = &clocked.chunks()[..3];
        assert!(
            chunks.iter().all(|chunk| (least..=most).contains(chunk)),
            "{chunks:?}"
        );
    }
}

#[test]
fn of_prompts_that_come_together_the_first_has_its_token_long_before_the_last() {
    let mut clocked = Clocked::new(CPU, 7);
    clocked.add(64, 20);
    clocked.run(100);
    clocked.steps.clear();
    (0..8).for_each(|_| clocked.add(64, 20));
    clocked.run(40);
    let decoding = (clocked.steps.iter())
        .position(|step| step.num_decode_rows > 0)
        .expect("they have more than one token each");
    let secs = |steps: &[Step]| steps.iter().map(|step| step.secs).sum::<f64>();
    let last_prefill = (clocked.steps.iter())
        .rposition(|step| step.num_prefill_tokens > 0)
        .expect("prompts were computed");
    let (first, last) = (
        secs(&clocked.steps[..decoding]),
        secs(&clocked.steps[..=last_prefill]),
    );
    assert!(first < 0.6 * last, "{first} s of {last} s");
}

#[test]
fn long_prompts_do_not_slow_running_streams_down_by_more_than_three() {
    for (machine, seed) in [(CPU, 1), (CPU, 2), (ACCELERATOR, 3)] {
        let mut clocked = Clocked::decoding(machine, 16, seed);
        for _ in 0..4 {
            clocked.run(30);
            clocked.add(2000, 4);
            clocked.run(75);
        }
        let most = 3.0 * clocked.usual().max(0.012);
        let late = clocked.steps.iter().filter(|step| step.secs > most).count();
        assert!(
            late * 100 <= clocked.steps.len(),
            "{late} of {}",
            clocked.steps.len()
        );
        let prefill: u32 = clocked.chunks().iter().sum();
        assert_eq!(prefill, 8000, "each prompt was computed meanwhile");
    }
}

#[test]
fn the_time_that_streams_can_spare_is_used() {
    let mut clocked = Clocked::decoding(CPU, 16, 4);
    (0..3).for_each(|_| clocked.add(2000, 4));
    clocked.run(60);
    let with_prefill = clocked
        .steps
        .iter()
        .filter(|step| step.num_prefill_tokens > 0);
    // The first ones learn, and the last of a prompt may be short.
    let times: Vec<f64> = with_prefill.skip(5).map(|step| step.secs / 0.054).collect();
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    assert!((1.8..2.2).contains(&mean), "{mean} times the usual step");
}

#[test]
fn many_that_wait_are_not_held_back_for_a_few_that_run() {
    let mut clocked = Clocked::decoding(CPU, 2, 5);
    (0..32).for_each(|_| clocked.add(128, 50));
    clocked.run(4);
    let first = clocked.chunks()[0];
    assert!(first > 200, "{first} tokens of 4,096");
}

#[test]
fn the_usual_step_is_learnt_even_where_no_step_only_decodes() {
    let mut clocked = Clocked::new(CPU, 6);
    // Prompts never stop coming, from the first step on.
    for _ in 0..300 {
        if clocked.scheduler.stats().num_waiting == 0 {
            clocked.add(600, 60);
        }
        clocked.run(1);
    }
    let settled = &clocked.steps[100..];
    let num_without = settled
        .iter()
        .filter(|step| step.num_prefill_tokens == 0)
        .count();
    assert!(
        num_without * 5 < settled.len(),
        "{num_without} steps without prefill"
    );
    let ratio = |step: &Step| step.secs / (0.014 + 0.0025 * step.num_decode_rows as f64);
    // Few that decode bear more, for the two that wait.
    let most = |step: &Step| 2.1 * (1.0 + 2.0 / step.num_decode_rows as f64);
    let late = (settled.iter())
        .filter(|step| step.num_decode_rows > 0 && ratio(step) > most(step))
        .count();
    assert!(late * 20 <= settled.len(), "{late} of {}", settled.len());
}

#[test]
fn one_wild_measurement_wears_off_within_a_few_steps() {
    let mut clocked = Clocked::decoding(CPU, 16, 7);
    clocked.add(20_000, 4);
    clocked.run(20);
    let before = *clocked.chunks().last().unwrap();
    clocked.glitch = 100.0;
    clocked.run(2);
    clocked.run(12);
    let after = *clocked.chunks().last().unwrap();
    assert!(
        after * 10 >= before * 7,
        "{before} tokens before, {after} after"
    );

    // The same for a step that only decodes, which must not be taken for the usual one.
    let mut clocked = Clocked::decoding(CPU, 16, 8);
    clocked.glitch = 100.0;
    clocked.run(4);
    clocked.add(2000, 4);
    clocked.run(12);
    let longest = clocked.steps[4..]
        .iter()
        .map(|step| step.secs)
        .fold(0.0, f64::max);
    assert!(longest < 0.2, "{longest} s");
}

#[test]
fn a_machine_that_becomes_slower_for_good_is_believed() {
    let mut clocked = Clocked::decoding(CPU, 16, 9);
    clocked.add(4000, 4);
    clocked.run(20);
    clocked.machine.per_prefill_token *= 10.0;
    clocked.run(10);
    clocked.steps.clear();
    clocked.run(20);
    let longest = clocked
        .steps
        .iter()
        .map(|step| step.secs)
        .fold(0.0, f64::max);
    // 16 tokens are the least, and take 160 ms more than the 54 of a step that only decodes.
    assert!(longest < 0.3, "{longest} s");
}

#[test]
fn whatever_is_measured_each_plan_keeps_the_limits_and_every_prompt_is_computed() {
    for seed in 0..10 {
        let mut random = Random(seed);
        let mut clocked = Clocked::new(CPU, seed);
        for n in 0..200 {
            if random.one_in(20) {
                clocked.add(1 + random.below(600) as u32, 1 + random.below(10) as u32);
            }
            let wild = [0.0, 1e-9, 1.0, 1.0, 1e3, 1e9];
            clocked.glitch = wild[random.below(wild.len() as u64) as usize];
            clocked.run(1);
            if n % 40 == 0 {
                invariants::check(&clocked.scheduler);
            }
        }
        clocked.run(5_000);
        assert!(clocked.scheduler.is_idle(), "seed {seed}");
        assert!(clocked.chunks().iter().all(|&tokens| tokens <= LIMIT));
    }
}

#[test]
fn the_oldest_prompt_has_the_least_chunk_in_every_plan() {
    let mut clocked = Clocked::decoding(CPU, 16, 10);
    clocked.machine.per_prefill_token = 1e9;
    clocked.add(1000, 1);
    clocked.run(5);
    clocked.steps.clear();
    clocked.run(20);
    let least = clocked
        .steps
        .iter()
        .map(|step| step.num_prefill_tokens)
        .min();
    assert_eq!(least, Some(MIN_PREFILL_TOKENS));
}

#[test]
fn steps_that_are_too_fast_to_measure_do_not_keep_prompts_waiting() {
    let mut clocked = Clocked::new(CPU, 14);
    clocked.machine.per_step = 0.0;
    clocked.machine.per_decode_row = 0.0;
    clocked.add(600, 1000);
    clocked.run(10);
    clocked.steps.clear();
    clocked.add(2000, 1);
    clocked.run(12);
    let prefill: u32 = clocked.chunks().iter().sum();
    assert_eq!(prefill, 2000);
}

#[test]
fn a_prompt_of_any_length_makes_no_step_much_longer() {
    // Long enough for a wrong belief to feed on itself.
    let mut clocked = Clocked::decoding(CPU, 16, 15);
    clocked.add(12_000, 4);
    clocked.run(400);
    let longest = clocked
        .steps
        .iter()
        .map(|step| step.secs)
        .fold(0.0, f64::max);
    assert!(longest < 0.2, "{longest} s");
}

#[test]
fn a_budget_below_the_least_chunk_is_kept() {
    let mut scheduler = Scheduler::new(SchedulerConfig {
        num_blocks: 100,
        block_size: 16,
        max_batch_prefill_tokens: 5,
        max_batch_size: 8,
        prefix_caching: false,
    });
    scheduler.add(id(1), spec(0..5, 90)).unwrap();
    let mut shard = ReferenceShard::new(100, 16);
    for _ in 0..4 {
        let plan = scheduler.schedule().unwrap();
        scheduler.observe(plan.step_id, Duration::from_millis(50));
        scheduler.apply(shard.execute(&plan)).unwrap();
    }
    scheduler.add(id(2), spec(10..40, 4)).unwrap();
    assert_eq!(rows(&scheduler.schedule().unwrap()), [(1, 1), (2, 5)]);
}

#[test]
fn a_time_that_belongs_to_no_outstanding_step_is_ignored() {
    let mut told = Clocked::decoding(CPU, 4, 11);
    let mut untold = Clocked::decoding(CPU, 4, 11);
    told.scheduler.observe(u64::MAX, Duration::from_secs(1000));
    for clocked in [&mut told, &mut untold] {
        clocked.add(2000, 2);
        clocked.run(10);
    }
    assert_eq!(told.chunks(), untold.chunks());
}

#[test]
fn the_same_times_give_the_same_chunks() {
    let chunks = || {
        let mut clocked = Clocked::decoding(CPU, 8, 12);
        (0..5).for_each(|_| clocked.add(1000, 20));
        clocked.run(100);
        clocked.chunks()
    };
    assert_eq!(chunks(), chunks());
    assert!(chunks().iter().any(|&tokens| tokens < LIMIT));
}

#[test]
fn observed_or_not_every_sequence_gets_the_same_tokens() {
    let generate = |is_observed: bool| {
        let mut clocked = Clocked::new(CPU, 13);
        let mut tokens = vec![Vec::new(); 12];
        (0..12).for_each(|n| clocked.add(300 + 40 * n, 30));
        while let Some(plan) = clocked.scheduler.schedule() {
            let time = Duration::from_secs_f64(clocked.step(&plan).secs);
            if is_observed {
                clocked.scheduler.observe(plan.step_id, time);
            }
            for event in clocked
                .scheduler
                .apply(clocked.shard.execute(&plan))
                .unwrap()
            {
                if let SequenceEvent::Token(id, token, _) = event {
                    tokens[id.0 as usize].push(token.token_id);
                }
            }
        }
        tokens
    };
    assert_eq!(generate(true), generate(false));
}

#[test]
fn a_machine_that_other_programs_share_still_has_its_room_used() {
    for seed in 0..10 {
        let mut random = Random(seed);
        let mut clocked = Clocked::decoding(CPU, 16, seed);
        clocked.add(10_000, 4);
        for _ in 0..100 {
            // Mostly undisturbed, at times several times slower.
            let slow = if random.one_in(4) { 40 } else { 5 };
            clocked.glitch = 0.8 + random.below(slow) as f64 / 10.0;
            clocked.run(1);
        }
        let chunks = clocked.chunks();
        let mean = f64::from(chunks.iter().sum::<u32>()) / chunks.len() as f64;
        assert!(mean > 19.0, "{mean} tokens a step, seed {seed}");
        let longest = clocked
            .steps
            .iter()
            .map(|step| step.secs)
            .fold(0.0, f64::max);
        // The slowest of all moments with three times the usual step.
        assert!(longest < 4.7 * 3.0 * 0.054, "{longest} s, seed {seed}");
    }
}

/// Tokens per second of a closed loop of clients with 128 tokens in and 64 out.
fn closed_loop(machine: Machine, num_clients: usize, is_observed: bool) -> f64 {
    let mut clocked = Clocked::new(machine, 16);
    clocked.is_observed = is_observed;
    let num_requests = 4 * num_clients;
    loop {
        let stats = clocked.scheduler.stats();
        let num_open = stats.num_waiting + stats.num_running;
        let num_left = num_requests - clocked.num_added as usize;
        (0..num_left.min(num_clients - num_open)).for_each(|_| clocked.add(128, 64));
        let num_steps = clocked.steps.len();
        clocked.run(1);
        if clocked.steps.len() == num_steps {
            let secs: f64 = clocked.steps.iter().map(|step| step.secs).sum();
            return 64.0 * num_requests as f64 / secs;
        }
    }
}

#[test]
fn an_even_pace_costs_little_throughput() {
    // On the second one prefill is dear beside decodes, whatever its size, as where weights are expanded for many rows.
    let dear = Machine {
        per_mixed_step: 15_000.0,
        ..CPU
    };
    for (machine, least) in [(CPU, 0.95), (dear, 0.8)] {
        for num_clients in [1, 8, 32, 64] {
            let share =
                closed_loop(machine, num_clients, true) / closed_loop(machine, num_clients, false);
            assert!(
                share > least,
                "{share} of the throughput of {num_clients} clients"
            );
        }
    }
}

#[test]
fn a_forecast_is_of_the_oldest_step_without_a_result_and_says_what_such_steps_took() {
    assert!(Clocked::new(CPU, 1).scheduler.forecast().is_none());
    let mut clocked = Clocked::decoding(CPU, 16, 9);
    clocked.add(2000, 4);
    for _ in 0..20 {
        clocked.run(1);
        let next = clocked.waiting[0].1;
        let forecast = clocked.scheduler.forecast().unwrap();
        let shape = (forecast.num_decode_rows, forecast.num_prefill_tokens as u32);
        assert_eq!(shape, (next.num_decode_rows, next.num_prefill_tokens));
        if next.num_prefill_tokens == 0 {
            let ratio = forecast.foreseen.unwrap().as_secs_f64() / next.secs;
            assert!((0.9..1.1).contains(&ratio), "{ratio}");
        }
    }
}
