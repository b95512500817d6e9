//! Functions of float32 made from the operations of `Simd`, with errors of a few units in the last place.

use super::Simd;

/// e^x. 0 below -87.3 (where the result would be subnormal, and for minus infinity) and finite above 88.3.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub unsafe fn exp<S: Simd>(x: S::F32) -> S::F32 {
    const LOWEST: f32 = -87.3;
    // Below the lowest, the result is multiplied by 0: a comparison that every instruction set can make.
    let kept = S::min(
        S::max(
            S::mul(S::sub(x, S::splat(LOWEST)), S::splat(f32::MAX)),
            S::splat(0.0),
        ),
        S::splat(1.0),
    );
    let x = S::min(S::max(x, S::splat(LOWEST)), S::splat(88.3));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that the subtraction is exact to the last place.
    let r = S::fma(n, S::splat(-0.693_145_751_953_125), x);
    let r = S::fma(n, S::splat(-1.428_606_765_330_187e-6), r);
    // Taylor's series, whose remainder on |r| <= ln 2 / 2 is below 4e-8 of the result.
    let mut p = S::splat(1.0 / 5040.0);
    for coefficient in [
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    S::mul(S::scale(p, n), kept)
}

/// x / (1 + e^-x)
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::F32) -> S::F32 {
    S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x))))
}
