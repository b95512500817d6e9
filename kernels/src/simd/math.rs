//! Functions of float32 made from the operations of `Simd`, with errors of a few units in the last place.

use super::Simd;

/// e^x. 0 below -87.7 (where the result would be subnormal, and for minus infinity) and finite above 88.3.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub unsafe fn exp<S: Simd>(x: S::F32) -> S::F32 {
    let x = S::min(S::max(x, S::splat(-88.0)), S::splat(88.3));
    let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
    // ln 2 in two parts, so that the subtraction is exact to the last place.
    let r = S::fma(n, S::splat(-0.693_145_751_953_125), x);
    let r = S::fma(n, S::splat(-1.428_606_765_330_187e-6), r);
    // Taylor's series, whose remainder on |r| <= ln 2 / 2 is below 1.3e-7 of the result.
    let mut p = S::splat(1.0 / 720.0);
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    S::scale(p, n)
}

/// 2^x, exactly 1 for 0. 0 below -126 (where the result would be subnormal, and for minus infinity); x is at most 127.
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub unsafe fn exp2<S: Simd>(x: S::F32) -> S::F32 {
    let x = S::max(x, S::splat(-127.0));
    let n = S::round(x);
    let r = S::sub(x, n);
    // 1 + r q(r), with the q of degree 4 whose largest relative error on |r| <= 1/2 is least: 9e-8 of the result.
    let mut p = S::splat(0.001_326_472_731_307_149);
    for coefficient in [
        0.009_671_512_991_189_957,
        0.055_507_335_811_853_41,
        0.240_222_424_268_722_53,
        0.693_147_003_650_665_3,
        1.0,
    ] {
        p = S::fma(p, r, S::splat(coefficient));
    }
    S::scale(p, n)
}

/// x / (1 + e^-x)
#[inline(always)]
pub unsafe fn silu<S: Simd>(x: S::F32) -> S::F32 {
    S::div(x, S::add(S::splat(1.0), exp::<S>(S::sub(S::splat(0.0), x))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{InstructionSet, Kernel, LANES, choose, chosen, dispatch};

    struct ExpOf([f32; LANES]);
    struct Exp2Of([f32; LANES]);

    impl Kernel for ExpOf {
        type Output = [f32; LANES];

        #[inline(always)]
        unsafe fn run<S: Simd>(mut self) -> Self::Output {
            S::store(self.0.as_mut_ptr(), exp::<S>(S::load(self.0.as_ptr())));
            self.0
        }
    }

    impl Kernel for Exp2Of {
        type Output = [f32; LANES];

        #[inline(always)]
        unsafe fn run<S: Simd>(mut self) -> Self::Output {
            S::store(self.0.as_mut_ptr(), exp2::<S>(S::load(self.0.as_ptr())));
            self.0
        }
    }

    #[test]
    fn exp_is_near_the_truth_and_nothing_far_below_on_every_instruction_set() {
        let usual = chosen();
        for set in InstructionSet::ALL.into_iter().filter(|set| choose(*set)) {
            for start in (-140..88).map(|n| n as f32) {
                let x: [f32; LANES] = std::array::from_fn(|lane| start + lane as f32 / 16.0);
                for (x, y) in x.into_iter().zip(dispatch(ExpOf(x))) {
                    let truth = f64::from(x).exp();
                    if x < -87.7 {
                        assert_eq!(y, 0.0, "e^{x} on {set:?}");
                    } else if x > -87.6 {
                        assert!(
                            (f64::from(y) / truth - 1.0).abs() < 4e-7,
                            "e^{x} on {set:?}: {y}"
                        );
                    }
                }
            }
            assert_eq!(dispatch(ExpOf([f32::NEG_INFINITY; LANES])), [0.0; LANES]);
            assert!(dispatch(ExpOf([f32::INFINITY; LANES]))[0].is_finite());
        }
        choose(usual);
    }
    #[test]
    fn exp2_is_near_the_truth_and_nothing_far_below_on_every_instruction_set() {
        let usual = chosen();
        for set in InstructionSet::ALL.into_iter().filter(|set| choose(*set)) {
            for start in (-140..126).map(|n| n as f32) {
                let x: [f32; LANES] = std::array::from_fn(|lane| start + lane as f32 / 16.0);
                for (x, y) in x.into_iter().zip(dispatch(Exp2Of(x))) {
                    let truth = f64::from(x).exp2();
                    if x < -126.5 {
                        assert_eq!(y, 0.0, "2^{x} on {set:?}");
                    } else if x >= -126.0 {
                        assert!(
                            (f64::from(y) / truth - 1.0).abs() < 4e-7,
                            "2^{x} on {set:?}: {y}"
                        );
                    }
                }
            }
            assert_eq!(dispatch(Exp2Of([f32::NEG_INFINITY; LANES])), [0.0; LANES]);
            assert_eq!(dispatch(Exp2Of([0.0; LANES])), [1.0; LANES]);
        }
        choose(usual);
    }
}
