//! AVX-512, with VNNI (int8 dot products) and with BF16 (bf16 dot products, whose activations are rounded to bf16).

use std::arch::x86_64::*;
use std::ops::Range;

use super::avx2::store_split_quads;
use crate::compact::{self, Exponents};
use crate::simd::Simd;

#[derive(Clone, Copy)]
pub struct Avx512;
#[derive(Clone, Copy)]
pub struct Avx512Vnni;
#[derive(Clone, Copy)]
pub struct Avx512Bf16;

/// Sixteen pairs of a compact group.
#[inline(always)]
unsafe fn expand(group: *const u8, vector: usize, exponents: Exponents) -> __m512i {
    let (bytes, codes) = compact::parts(group, vector);
    // Words of the exponents, twice, because a look-up takes five bits and the fifth belongs to the next vector.
    let words = _mm256_slli_epi16::<7>(_mm256_cvtepu8_epi16(_mm_loadu_si128(
        exponents.as_ptr().cast(),
    )));
    let table = _mm512_broadcast_i64x4(words);
    let codes = _mm512_srl_epi16(
        _mm512_loadu_si512(codes.cast()),
        _mm_cvtsi32_si128(4 * vector as i32),
    );
    let exponents = _mm512_permutexvar_epi16(codes, table);
    let rest = _mm512_cvtepi8_epi16(_mm256_loadu_si256(bytes.cast()));
    // exponents | (rest & sign and mantissa)
    _mm512_ternarylogic_epi32::<0xf8>(exponents, rest, _mm512_set1_epi16(0x807f_u16 as i16))
}

/// What all three share.
macro_rules! common {
    () => {
        type F32 = __m512;
        type I32 = __m512i;
        type Quads = __m512i;

        const ROWS: usize = 12;
        const COMPACT_ROWS: usize = 12;

        #[inline(always)]
        unsafe fn prefetch(from: *const u8) {
            _mm_prefetch::<_MM_HINT_T1>(from.cast());
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> __m512 {
            _mm512_set1_ps(value)
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> __m512 {
            _mm512_loadu_ps(from)
        }
        #[inline(always)]
        unsafe fn store(to: *mut f32, value: __m512) {
            _mm512_storeu_ps(to, value);
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            _mm512_add_ps(a, b)
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            _mm512_sub_ps(a, b)
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            _mm512_mul_ps(a, b)
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            _mm512_div_ps(a, b)
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            _mm512_min_ps(a, b)
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            _mm512_max_ps(a, b)
        }
        #[inline(always)]
        unsafe fn abs(a: __m512) -> __m512 {
            _mm512_abs_ps(a)
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            _mm512_fmadd_ps(a, b, c)
        }
        #[inline(always)]
        unsafe fn round(a: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)
        }
        #[inline(always)]
        unsafe fn scale(a: __m512, n: __m512) -> __m512 {
            let is_normal = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(n, _mm512_set1_ps(-126.0));
            _mm512_maskz_scalef_ps(is_normal, a, n)
        }
        #[inline(always)]
        unsafe fn only_lanes(a: __m512, lanes: Range<usize>) -> __m512 {
            let kept = (1_u32 << lanes.end) - (1_u32 << lanes.start.min(lanes.end));
            _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), kept as __mmask16, a)
        }
        #[inline(always)]
        unsafe fn any_greater(a: __m512, b: __m512) -> bool {
            _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0
        }
        #[inline(always)]
        unsafe fn sum(a: __m512) -> f32 {
            let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_add_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
        #[inline(always)]
        unsafe fn max_lane(a: __m512) -> f32 {
            let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
            let four = _mm_max_ps(
                _mm256_castps256_ps128(eight),
                _mm256_extractf128_ps::<1>(eight),
            );
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
        #[inline(always)]
        unsafe fn load_bf16(from: *const u16) -> __m512 {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
        #[inline(always)]
        unsafe fn load_compact(
            group: *const u8,
            vector: usize,
            exponents: Exponents,
        ) -> Self::Pairs {
            Self::pairs_of(expand(group, vector, exponents))
        }
        #[inline(always)]
        unsafe fn expand_compact(
            group: *const u8,
            vector: usize,
            exponents: Exponents,
            to: *mut u32,
        ) {
            _mm512_storeu_si512(to.cast(), expand(group, vector, exponents));
        }
        #[inline(always)]
        unsafe fn load_pairs(from: *const u32) -> Self::Pairs {
            Self::pairs_of(_mm512_loadu_si512(from.cast()))
        }
        #[inline(always)]
        unsafe fn splat_i32(value: i32) -> __m512i {
            _mm512_set1_epi32(value)
        }
        #[inline(always)]
        unsafe fn to_f32(a: __m512i) -> __m512 {
            _mm512_cvtepi32_ps(a)
        }
        #[inline(always)]
        unsafe fn load_quads(from: *const u8) -> __m512i {
            _mm512_loadu_si512(from.cast())
        }
        #[inline(always)]
        unsafe fn load_half_quads(from: *const u8) -> [__m512i; 2] {
            let both = _mm512_loadu_si512(from.cast());
            let mask = _mm512_set1_epi8(15);
            [
                _mm512_and_si512(both, mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask),
            ]
        }
    };
}

/// bf16 products by way of float32: activations keep their precision.
macro_rules! pairs_of_float32 {
    () => {
        type Pair = [f32; 2];
        type Pairs = [__m512; 2];

        #[inline(always)]
        unsafe fn store_bf16(to: *mut u16, value: __m512) {
            let bits = _mm512_castps_si512(value);
            let is_odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded =
                _mm512_add_epi32(bits, _mm512_add_epi32(is_odd, _mm512_set1_epi32(0x7fff)));
            let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(value, value);
            let kept = _mm512_mask_or_epi32(rounded, is_nan, bits, _mm512_set1_epi32(0x0040_0000));
            _mm256_storeu_si256(
                to.cast(),
                _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(kept)),
            );
        }
        #[inline(always)]
        unsafe fn store_as_pairs(to: *mut Self::Pair, value: __m512) {
            _mm512_storeu_ps(to.cast(), value);
        }
        #[inline(always)]
        fn pair(first: f32, second: f32) -> Self::Pair {
            [first, second]
        }
        #[inline(always)]
        unsafe fn multiply_pairs(
            sum: __m512,
            weights: Self::Pairs,
            pair: *const Self::Pair,
        ) -> __m512 {
            let sum = _mm512_fmadd_ps(weights[0], _mm512_set1_ps((*pair)[0]), sum);
            _mm512_fmadd_ps(weights[1], _mm512_set1_ps((*pair)[1]), sum)
        }
    };
}

/// Pairs as a set multiplies them, from their bits.
trait FromBits: Simd {
    unsafe fn pairs_of(bits: __m512i) -> Self::Pairs;
}

#[inline(always)]
unsafe fn two_float32(bits: __m512i) -> [__m512; 2] {
    let upper = _mm512_and_si512(bits, _mm512_set1_epi32(0xffff_0000_u32 as i32));
    [
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)),
        _mm512_castsi512_ps(upper),
    ]
}

impl FromBits for Avx512 {
    #[inline(always)]
    unsafe fn pairs_of(bits: __m512i) -> [__m512; 2] {
        two_float32(bits)
    }
}

impl FromBits for Avx512Vnni {
    #[inline(always)]
    unsafe fn pairs_of(bits: __m512i) -> [__m512; 2] {
        two_float32(bits)
    }
}

impl FromBits for Avx512Bf16 {
    #[inline(always)]
    unsafe fn pairs_of(bits: __m512i) -> __m512i {
        bits
    }
}

/// int8 products in one instruction.
macro_rules! quads_of_vnni {
    () => {
        type Quad = [i8; 4];

        #[inline(always)]
        unsafe fn store_as_quads(to: *mut Self::Quad, value: __m512) {
            _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(value)));
        }
        #[inline(always)]
        unsafe fn multiply_quads(
            sum: __m512i,
            weights: __m512i,
            quad: *const Self::Quad,
        ) -> __m512i {
            _mm512_dpbusd_epi32(
                sum,
                weights,
                _mm512_set1_epi32(quad.cast::<i32>().read_unaligned()),
            )
        }
    };
}

impl Simd for Avx512 {
    common!();
    pairs_of_float32!();

    type Quad = [i16; 4]; // first and third, second and fourth

    #[inline(always)]
    unsafe fn store_as_quads(to: *mut Self::Quad, value: __m512) {
        let values = _mm512_cvtps_epi32(value);
        store_split_quads(to, _mm512_castsi512_si256(values));
        store_split_quads(to.add(2), _mm512_extracti32x8_epi32::<1>(values));
    }
    #[inline(always)]
    unsafe fn multiply_quads(sum: __m512i, weights: __m512i, quad: *const Self::Quad) -> __m512i {
        // Words of even and of odd bytes: their products with int8 and a sum of two fit, which maddubs would saturate.
        let even_activations = _mm512_set1_epi32(quad.cast::<i32>().read_unaligned());
        let odd_activations = _mm512_set1_epi32(quad.cast::<i32>().add(1).read_unaligned());
        let even = _mm512_madd_epi16(
            _mm512_and_si512(weights, _mm512_set1_epi16(0xff)),
            even_activations,
        );
        let odd = _mm512_madd_epi16(_mm512_srli_epi16::<8>(weights), odd_activations);
        _mm512_add_epi32(sum, _mm512_add_epi32(even, odd))
    }
}

impl Simd for Avx512Vnni {
    common!();
    pairs_of_float32!();
    quads_of_vnni!();
}

impl Simd for Avx512Bf16 {
    common!();
    quads_of_vnni!();

    type Pair = u32; // two bf16, the first in the lower half
    type Pairs = __m512i;

    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, value: __m512) {
        let rounded: __m256i = std::mem::transmute(_mm512_cvtneps_pbh(value));
        _mm256_storeu_si256(to.cast(), rounded);
    }
    #[inline(always)]
    unsafe fn store_as_pairs(to: *mut u32, value: __m512) {
        Self::store_bf16(to.cast(), value);
    }
    #[inline(always)]
    fn pair(first: f32, second: f32) -> u32 {
        u32::from(crate::bf16::from_f32(first)) | u32::from(crate::bf16::from_f32(second)) << 16
    }
    #[inline(always)]
    unsafe fn multiply_pairs(sum: __m512, weights: __m512i, pair: *const u32) -> __m512 {
        let activations = _mm512_set1_epi32(*pair as i32);
        _mm512_dpbf16_ps(
            sum,
            std::mem::transmute::<__m512i, __m512bh>(weights),
            std::mem::transmute::<__m512i, __m512bh>(activations),
        )
    }
}
