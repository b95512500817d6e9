//! Plain Rust, which the compiler makes vector code of as far as it can: for processors without an implementation of their own.

use std::ops::Range;

use super::{LANES, Simd};
use crate::bf16;

#[derive(Clone, Copy)]
pub struct Portable;

#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Lanes<T>([T; LANES]);

#[inline(always)]
fn zip(a: Lanes<f32>, b: Lanes<f32>, f: impl Fn(f32, f32) -> f32) -> Lanes<f32> {
    Lanes(std::array::from_fn(|lane| f(a.0[lane], b.0[lane])))
}

#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Where there is no such instruction, `mul_add` calls a slow function.
    if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

impl Simd for Portable {
    type F32 = Lanes<f32>;
    type I32 = Lanes<i32>;
    type Pair = [f32; 2];
    type Quad = [i8; 4];
    type Pairs = [Lanes<f32>; 2];
    type Quads = Lanes<[u8; 4]>;

    const ROWS: usize = 2;
    const COMPACT_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::F32 {
        Lanes([value; LANES])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::F32 {
        Lanes(from.cast::<[f32; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Self::F32) {
        to.cast::<[f32; LANES]>().write_unaligned(value.0);
    }
    #[inline(always)]
    unsafe fn add(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn max(a: Self::F32, b: Self::F32) -> Self::F32 {
        zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn abs(a: Self::F32) -> Self::F32 {
        Lanes(a.0.map(f32::abs))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        Lanes(std::array::from_fn(|lane| {
            multiply_add(a.0[lane], b.0[lane], c.0[lane])
        }))
    }
    #[inline(always)]
    unsafe fn round(a: Self::F32) -> Self::F32 {
        // Adding 1.5 * 2^23 leaves no room for a fraction; good for magnitudes below 2^22, which is all that is asked.
        const SHIFT: f32 = 12_582_912.0;
        Lanes(a.0.map(|x| (x + SHIFT) - SHIFT))
    }
    #[inline(always)]
    unsafe fn scale(a: Self::F32, n: Self::F32) -> Self::F32 {
        zip(a, n, |a, n| {
            a * f32::from_bits(((n as i32 + 127).max(0) << 23) as u32)
        })
    }
    #[inline(always)]
    unsafe fn only_lanes(a: Self::F32, lanes: Range<usize>) -> Self::F32 {
        Lanes(std::array::from_fn(|lane| {
            if lanes.contains(&lane) {
                a.0[lane]
            } else {
                f32::NEG_INFINITY
            }
        }))
    }
    #[inline(always)]
    unsafe fn any_greater(a: Self::F32, b: Self::F32) -> bool {
        a.0.iter().zip(b.0).any(|(a, b)| *a > b)
    }
    #[inline(always)]
    unsafe fn sum(a: Self::F32) -> f32 {
        let eight: [f32; 8] = std::array::from_fn(|lane| a.0[lane] + a.0[lane + 8]);
        let four: [f32; 4] = std::array::from_fn(|lane| eight[lane] + eight[lane + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    unsafe fn max_lane(a: Self::F32) -> f32 {
        a.0.into_iter()
            .fold(f32::NEG_INFINITY, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Self::F32 {
        Lanes(
            from.cast::<[u16; LANES]>()
                .read_unaligned()
                .map(bf16::to_f32),
        )
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: Self::F32) {
        to.cast::<[u16; LANES]>()
            .write_unaligned(value.0.map(bf16::from_f32));
    }
    #[inline(always)]
    unsafe fn store_as_pairs(to: *mut Self::Pair, value: Self::F32) {
        Self::store(to.cast(), value);
    }
    #[inline(always)]
    fn pair(first: f32, second: f32) -> Self::Pair {
        [first, second]
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
        let bits = from.cast::<[u32; LANES]>().read_unaligned();
        [
            Lanes(bits.map(|pair| f32::from_bits(pair << 16))),
            Lanes(bits.map(|pair| f32::from_bits(pair & 0xffff_0000))),
        ]
    }
    #[inline(always)]
    unsafe fn multiply_pairs(
        sum: Self::F32,
        weights: Self::Pairs,
        pair: *const Self::Pair,
    ) -> Self::F32 {
        let [first, second] = *pair;
        Self::fma(
            weights[1],
            Self::splat(second),
            Self::fma(weights[0], Self::splat(first), sum),
        )
    }
    #[inline(always)]
    unsafe fn store_as_quads(to: *mut Self::Quad, value: Self::F32) {
        to.cast::<[i8; LANES]>()
            .write_unaligned(value.0.map(|x| x as i8));
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> Self::I32 {
        Lanes([value; LANES])
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I32) -> Self::F32 {
        Lanes(a.0.map(|x| x as f32))
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> Self::Quads {
        Lanes(from.cast::<[[u8; 4]; LANES]>().read_unaligned())
    }
    #[inline(always)]
    unsafe fn load_half_quads(from: *const u8) -> [Self::Quads; 2] {
        let both = Self::load_quads(from).0;
        [
            Lanes(both.map(|quad| quad.map(|byte| byte & 15))),
            Lanes(both.map(|quad| quad.map(|byte| byte >> 4))),
        ]
    }
    #[inline(always)]
    unsafe fn multiply_quads(
        sum: Self::I32,
        weights: Self::Quads,
        quad: *const Self::Quad,
    ) -> Self::I32 {
        let activations = (*quad).map(i32::from);
        Lanes(std::array::from_fn(|lane| {
            let products = weights.0[lane]
                .iter()
                .zip(activations)
                .map(|(weight, activation)| i32::from(*weight) * activation);
            sum.0[lane] + products.sum::<i32>()
        }))
    }
}
