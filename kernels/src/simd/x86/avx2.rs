//! AVX2 and FMA: two vectors of eight for every sixteen lanes.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::compact::{self, Exponents};
use crate::simd::Simd;

#[derive(Clone, Copy)]
pub struct Avx2;

type Two = [__m256; 2];

impl Simd for Avx2 {
    type F32 = Two;
    type I32 = [__m256i; 2];
    type Pair = [f32; 2];
    type Quad = [i16; 4]; // first and third, second and fourth
    type Pairs = [Two; 2];
    type Quads = [__m256i; 2];

    const ROWS: usize = 2;
    const COMPACT_ROWS: usize = 2;

    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Two {
        [_mm256_set1_ps(value); 2]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Two {
        [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))]
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, value: Two) {
        _mm256_storeu_ps(to, value[0]);
        _mm256_storeu_ps(to.add(8), value[1]);
    }
    #[inline(always)]
    unsafe fn add(a: Two, b: Two) -> Two {
        [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn sub(a: Two, b: Two) -> Two {
        [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn mul(a: Two, b: Two) -> Two {
        [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn div(a: Two, b: Two) -> Two {
        [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn min(a: Two, b: Two) -> Two {
        [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn max(a: Two, b: Two) -> Two {
        [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])]
    }
    #[inline(always)]
    unsafe fn abs(a: Two) -> Two {
        let sign = _mm256_set1_ps(-0.0);
        [_mm256_andnot_ps(sign, a[0]), _mm256_andnot_ps(sign, a[1])]
    }
    #[inline(always)]
    unsafe fn fma(a: Two, b: Two, c: Two) -> Two {
        [
            _mm256_fmadd_ps(a[0], b[0], c[0]),
            _mm256_fmadd_ps(a[1], b[1], c[1]),
        ]
    }
    #[inline(always)]
    unsafe fn round(a: Two) -> Two {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        [
            _mm256_round_ps::<NEAREST>(a[0]),
            _mm256_round_ps::<NEAREST>(a[1]),
        ]
    }
    #[inline(always)]
    unsafe fn scale(a: Two, n: Two) -> Two {
        let power = |n: __m256| {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
            let biased = _mm256_max_epi32(biased, _mm256_setzero_si256());
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        };
        [
            _mm256_mul_ps(a[0], power(n[0])),
            _mm256_mul_ps(a[1], power(n[1])),
        ]
    }
    #[inline(always)]
    unsafe fn only_lanes(a: Two, lanes: Range<usize>) -> Two {
        let kept = |first: i32| {
            let own = _mm256_add_epi32(
                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                _mm256_set1_epi32(first),
            );
            let begun = _mm256_cmpgt_epi32(own, _mm256_set1_epi32(lanes.start as i32 - 1));
            let ended = _mm256_cmpgt_epi32(own, _mm256_set1_epi32(lanes.end as i32 - 1));
            _mm256_castsi256_ps(_mm256_andnot_si256(ended, begun))
        };
        let hidden = _mm256_set1_ps(f32::NEG_INFINITY);
        [
            _mm256_blendv_ps(hidden, a[0], kept(0)),
            _mm256_blendv_ps(hidden, a[1], kept(8)),
        ]
    }
    #[inline(always)]
    unsafe fn any_greater(a: Two, b: Two) -> bool {
        let greater = _mm256_or_ps(
            _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]),
            _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]),
        );
        _mm256_movemask_ps(greater) != 0
    }
    #[inline(always)]
    unsafe fn sum(a: Two) -> f32 {
        let eight = _mm256_add_ps(a[0], a[1]);
        let four = _mm_add_ps(
            _mm256_castps256_ps128(eight),
            _mm256_extractf128_ps::<1>(eight),
        );
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn max_lane(a: Two) -> f32 {
        let eight = _mm256_max_ps(a[0], a[1]);
        let four = _mm_max_ps(
            _mm256_castps256_ps128(eight),
            _mm256_extractf128_ps::<1>(eight),
        );
        let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u16) -> Two {
        let widen =
            |bits| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)));
        [
            widen(_mm_loadu_si128(from.cast())),
            widen(_mm_loadu_si128(from.add(8).cast())),
        ]
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: Two) {
        let [low, high] = [round_to_bf16(value[0]), round_to_bf16(value[1])];
        let packed = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(low, high));
        _mm256_storeu_si256(to.cast(), packed);
    }
    #[inline(always)]
    unsafe fn store_as_pairs(to: *mut Self::Pair, value: Two) {
        Self::store(to.cast(), value);
    }
    #[inline(always)]
    fn pair(first: f32, second: f32) -> Self::Pair {
        [first, second]
    }
    #[inline(always)]
    unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
        pairs_of([
            _mm256_loadu_si256(from.cast()),
            _mm256_loadu_si256(from.add(8).cast()),
        ])
    }
    #[inline(always)]
    unsafe fn load_compact(group: *const u8, vector: usize, exponents: Exponents) -> Self::Pairs {
        pairs_of(expand(group, vector, exponents))
    }
    #[inline(always)]
    unsafe fn expand_compact(group: *const u8, vector: usize, exponents: Exponents, to: *mut u32) {
        let [low, high] = expand(group, vector, exponents);
        _mm256_storeu_si256(to.cast(), low);
        _mm256_storeu_si256(to.add(8).cast(), high);
    }
    #[inline(always)]
    unsafe fn multiply_pairs(sum: Two, weights: Self::Pairs, pair: *const Self::Pair) -> Two {
        let first = _mm256_broadcast_ss(&(*pair)[0]);
        let second = _mm256_broadcast_ss(&(*pair)[1]);
        let sum = Self::fma(weights[0], [first; 2], sum);
        Self::fma(weights[1], [second; 2], sum)
    }
    #[inline(always)]
    unsafe fn store_as_quads(to: *mut Self::Quad, value: Two) {
        for (half, value) in value.into_iter().enumerate() {
            let values = _mm256_cvtps_epi32(value);
            store_split_quads(to.add(2 * half), values);
        }
    }
    #[inline(always)]
    unsafe fn splat_i32(value: i32) -> Self::I32 {
        [_mm256_set1_epi32(value); 2]
    }
    #[inline(always)]
    unsafe fn to_f32(a: Self::I32) -> Two {
        [_mm256_cvtepi32_ps(a[0]), _mm256_cvtepi32_ps(a[1])]
    }
    #[inline(always)]
    unsafe fn load_quads(from: *const u8) -> Self::Quads {
        [
            _mm256_loadu_si256(from.cast()),
            _mm256_loadu_si256(from.add(32).cast()),
        ]
    }
    #[inline(always)]
    unsafe fn load_half_quads(from: *const u8) -> [Self::Quads; 2] {
        let [low, high] = Self::load_quads(from);
        let mask = _mm256_set1_epi8(15);
        let upper = |bytes| _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), mask);
        [
            [_mm256_and_si256(low, mask), _mm256_and_si256(high, mask)],
            [upper(low), upper(high)],
        ]
    }
    #[inline(always)]
    unsafe fn multiply_quads(
        sum: Self::I32,
        weights: Self::Quads,
        quad: *const Self::Quad,
    ) -> Self::I32 {
        // Words of even and of odd bytes: their products with int8 and a sum of two fit, which maddubs would saturate.
        let even_activations = _mm256_set1_epi32(quad.cast::<i32>().read_unaligned());
        let odd_activations = _mm256_set1_epi32(quad.cast::<i32>().add(1).read_unaligned());
        let mask = _mm256_set1_epi16(0xff);
        let add = |sum, weights| {
            let even = _mm256_madd_epi16(_mm256_and_si256(weights, mask), even_activations);
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(weights), odd_activations);
            _mm256_add_epi32(sum, _mm256_add_epi32(even, odd))
        };
        [add(sum[0], weights[0]), add(sum[1], weights[1])]
    }
}

#[inline(always)]
unsafe fn pairs_of(bits: [__m256i; 2]) -> [Two; 2] {
    let upper = _mm256_set1_epi32(0xffff_0000_u32 as i32);
    [
        [
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits[0])),
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(bits[1])),
        ],
        [
            _mm256_castsi256_ps(_mm256_and_si256(bits[0], upper)),
            _mm256_castsi256_ps(_mm256_and_si256(bits[1], upper)),
        ],
    ]
}

/// Sixteen pairs of a compact group.
#[inline(always)]
unsafe fn expand(group: *const u8, vector: usize, exponents: Exponents) -> [__m256i; 2] {
    let (bytes, codes) = compact::parts(group, vector);
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(exponents.as_ptr().cast()));
    let shift = _mm_cvtsi32_si128(4 * vector as i32);
    let kept = _mm256_set1_epi16(0x807f_u16 as i16);
    let mut pairs = [_mm256_setzero_si256(); 2];
    for (half, pairs) in pairs.iter_mut().enumerate() {
        let codes = _mm256_srl_epi16(_mm256_loadu_si256(codes.add(32 * half).cast()), shift);
        // A byte of zero is code 0, whose exponent is zero too.
        let codes = _mm256_and_si256(codes, _mm256_set1_epi16(15));
        let exponents = _mm256_slli_epi16::<7>(_mm256_shuffle_epi8(table, codes));
        let rest = _mm256_cvtepi8_epi16(_mm_loadu_si128(bytes.add(16 * half).cast()));
        *pairs = _mm256_or_si256(_mm256_and_si256(rest, kept), exponents);
    }
    pairs
}

/// The bf16 in the lower half of each lane. NaN stays NaN.
#[inline(always)]
unsafe fn round_to_bf16(value: __m256) -> __m256i {
    let bits = _mm256_castps_si256(value);
    let is_odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(is_odd, _mm256_set1_epi32(0x7fff)));
    let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(value, value));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
}

/// Eight int32 as two quads of int16: first and third, second and fourth.
#[inline(always)]
pub(super) unsafe fn store_split_quads(to: *mut [i16; 4], values: __m256i) {
    let words = _mm256_packs_epi32(values, values); // four words of each half, twice
    let order = _mm256_shufflelo_epi16::<0b11_01_10_00>(words);
    let quads = _mm256_permute4x64_epi64::<0b00_00_10_00>(order);
    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(quads));
}
