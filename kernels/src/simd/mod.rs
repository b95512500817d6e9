//! Sixteen lanes of float32, on whatever this processor has. A kernel is written once against `Simd` and compiled for every
//! instruction set; `dispatch` takes the best one that the processor has, or the one that a test asks for.
//!
//! Safety of everything here: a method of a `Simd` may only run where its instruction set exists, which `dispatch` sees to,
//! and pointers must be good for sixteen elements. Every function on the way from `dispatch` is `#[inline(always)]`, because
//! only what is inlined into the entry of an instruction set is compiled for it. A closure given to a method of an array is
//! not, so that there is none around these operations.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::compact::{self, Exponents};

mod math;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use math::{exp, exp2, silu};
pub use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512, Avx512Bf16, Avx512Vnni};

pub const LANES: usize = 16;

pub trait Simd: Copy + 'static {
    /// Sixteen float32.
    type F32: Copy;
    /// Sixteen int32.
    type I32: Copy;
    /// Two neighbouring activations of a row, as `multiply_pairs` takes them.
    type Pair: Copy;
    /// Four neighbouring int8 activations of a row, as `multiply_quads` takes them.
    type Quad: Copy;
    /// Sixteen pairs of bf16 weights, ready for `multiply_pairs`.
    type Pairs: Copy;
    /// Sixteen times four uint8 weights, ready for `multiply_quads`.
    type Quads: Copy;

    /// Rows of activations whose sums with one panel of weights fit into registers.
    const ROWS: usize;
    /// The same with compact weights, which are expanded anew for so many.
    const COMPACT_ROWS: usize;

    /// Asks for a cache line that will be read soon. The address need not be valid.
    #[inline(always)]
    unsafe fn prefetch(_from: *const u8) {}

    unsafe fn splat(value: f32) -> Self::F32;
    unsafe fn load(from: *const f32) -> Self::F32;
    unsafe fn store(to: *mut f32, value: Self::F32);
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32;
    unsafe fn abs(a: Self::F32) -> Self::F32;
    /// a * b + c
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;
    /// To the nearest integer, halves to even.
    unsafe fn round(a: Self::F32) -> Self::F32;
    /// a * 2^n for integral n of at most 127; 0 where n is below -126.
    unsafe fn scale(a: Self::F32, n: Self::F32) -> Self::F32;
    /// Minus infinity in all but some of the lanes.
    unsafe fn only_lanes(a: Self::F32, lanes: Range<usize>) -> Self::F32;
    /// Whether a lane of `a` is greater than that of `b`.
    unsafe fn any_greater(a: Self::F32, b: Self::F32) -> bool;
    unsafe fn sum(a: Self::F32) -> f32;
    unsafe fn max_lane(a: Self::F32) -> f32;

    unsafe fn load_bf16(from: *const u16) -> Self::F32;
    /// Rounds to the nearest, halves to even.
    unsafe fn store_bf16(to: *mut u16, value: Self::F32);

    /// Sixteen activations as eight pairs.
    unsafe fn store_as_pairs(to: *mut Self::Pair, value: Self::F32);
    /// Two activations as a pair.
    fn pair(first: f32, second: f32) -> Self::Pair;
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs;
    /// Sixteen pairs of a compact group (see `compact`), as `load_pairs` has them.
    #[inline(always)]
    unsafe fn load_compact(group: *const u8, vector: usize, exponents: Exponents) -> Self::Pairs {
        let mut pairs = [0; LANES];
        Self::expand_compact(group, vector, exponents, pairs.as_mut_ptr());
        Self::load_pairs(pairs.as_ptr())
    }
    /// Writes sixteen pairs of a compact group as `load_pairs` takes them.
    #[inline(always)]
    unsafe fn expand_compact(group: *const u8, vector: usize, exponents: Exponents, to: *mut u32) {
        for lane in 0..LANES {
            let first = compact::expand(group, vector, 2 * lane, &exponents);
            let second = compact::expand(group, vector, 2 * lane + 1, &exponents);
            *to.add(lane) = u32::from(first) | u32::from(second) << 16;
        }
    }
    /// Adds to each lane the products of its two weights with the two activations at `pair`.
    unsafe fn multiply_pairs(
        sum: Self::F32,
        weights: Self::Pairs,
        pair: *const Self::Pair,
    ) -> Self::F32;

    /// Sixteen activations as four quads; they are integers in -128..=127.
    unsafe fn store_as_quads(to: *mut Self::Quad, value: Self::F32);
    unsafe fn splat_i32(value: i32) -> Self::I32;
    unsafe fn to_f32(a: Self::I32) -> Self::F32;
    /// Sixty-four bytes, four weights to a lane.
    unsafe fn load_quads(from: *const u8) -> Self::Quads;
    /// Sixty-four bytes that hold a weight in each half: the lower halves, the upper halves.
    unsafe fn load_half_quads(from: *const u8) -> [Self::Quads; 2];
    /// Adds to each lane the products of its four weights with the four activations at `quad`.
    unsafe fn multiply_quads(
        sum: Self::I32,
        weights: Self::Quads,
        quad: *const Self::Quad,
    ) -> Self::I32;
}

/// Work that is compiled for every instruction set. `run` must be `#[inline(always)]`.
pub trait Kernel {
    type Output;
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum InstructionSet {
    Portable = 1,
    Avx2,
    Avx512,
    Avx512Vnni,
    Avx512Bf16,
}

impl InstructionSet {
    pub const ALL: [Self; 5] = [
        Self::Portable,
        Self::Avx2,
        Self::Avx512,
        Self::Avx512Vnni,
        Self::Avx512Bf16,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Vnni => "avx512_vnni",
            Self::Avx512Bf16 => "avx512_bf16",
        }
    }

    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => avx512,
            Self::Avx512Vnni => vnni,
            Self::Avx512Bf16 => vnni && is_x86_feature_detected!("avx512bf16"),
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }
}

/// 0 = not chosen yet.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// What `dispatch` uses: the best there is, unless `choose` said otherwise.
pub fn chosen() -> InstructionSet {
    let chosen = CHOSEN.load(Ordering::Relaxed);
    if let Some(known) = InstructionSet::ALL
        .into_iter()
        .find(|set| *set as u8 == chosen)
    {
        return known;
    }
    let best = InstructionSet::ALL
        .into_iter()
        .rfind(|set| set.is_available())
        .unwrap_or(InstructionSet::Portable);
    CHOSEN.store(best as u8, Ordering::Relaxed);
    best
}

/// Takes `set` from now on. False, and nothing changes, where the processor does not have it.
///
/// Packed activations do not outlive a call and packed weights are the same for all sets, so this may change between calls.
pub fn choose(set: InstructionSet) -> bool {
    if set.is_available() {
        CHOSEN.store(set as u8, Ordering::Relaxed);
    }
    set.is_available()
}

#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: `chosen` is available on this processor.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        match chosen() {
            InstructionSet::Portable => kernel.run::<Portable>(),
            InstructionSet::Avx2 => x86::run_avx2(kernel),
            InstructionSet::Avx512 => x86::run_avx512(kernel),
            InstructionSet::Avx512Vnni => x86::run_avx512_vnni(kernel),
            InstructionSet::Avx512Bf16 => x86::run_avx512_bf16(kernel),
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    unsafe {
        kernel.run::<Portable>()
    }
}
