//! Seeded numbers, and every instruction set in turn.

use std::sync::{Mutex, PoisonError};

use text_gen_kernels::bf16;
use text_gen_kernels::simd::{self, InstructionSet};

/// A small generator, good enough for test data.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// In -1..1.
    pub fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    pub fn bf16s(&mut self, count: usize) -> Vec<u16> {
        (0..count).map(|_| bf16::from_f32(self.float())).collect()
    }
}

/// Calls `test` with every instruction set of this processor, and the error that its rounding of activations may make,
/// relative to the size of the sums.
pub fn with_every_instruction_set(mut test: impl FnMut(f64)) {
    static CHOICE: Mutex<()> = Mutex::new(()); // of the whole process
    let _held = CHOICE.lock().unwrap_or_else(PoisonError::into_inner);
    let available: Vec<InstructionSet> = InstructionSet::ALL
        .into_iter()
        .filter(|set| set.is_available())
        .collect();
    for set in available {
        assert!(simd::choose(set));
        test(if set == InstructionSet::Avx512Bf16 {
            8e-3
        } else {
            2e-6
        });
    }
}
