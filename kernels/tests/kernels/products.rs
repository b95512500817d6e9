//! Products with packed weights against sums in float64.

use crate::common::{Random, with_every_instruction_set};
use text_gen_kernels::bf16;
use text_gen_kernels::buffer::Scratch;
use text_gen_kernels::linear::{Activations, Weights, multiply};
use text_gen_kernels::packed::{PANEL, Packed, Shape, Source, WeightFormat};
use text_gen_kernels::pool;

struct Case {
    weights: Vec<u16>,
    rows: usize,
    in_features: usize,
    bias: Option<Vec<f32>>,
    input: Vec<f32>,
    num_rows: usize,
}

impl Case {
    fn random(random: &mut Random, (rows, in_features): (usize, usize), num_rows: usize) -> Self {
        Self {
            weights: random.bf16s(rows * in_features),
            rows,
            in_features,
            bias: (random.below(2) == 0).then(|| random.floats(rows)),
            input: random.floats(num_rows * in_features),
            num_rows,
        }
    }

    /// As bf16 is kept: most sizes compact, and every other one as it is.
    fn pack(&self, shape: Shape) -> Packed {
        let is_compact = !self.rows.is_multiple_of(3);
        self.pack_as(
            shape,
            if is_compact {
                WeightFormat::Compact
            } else {
                WeightFormat::Bf16
            },
        )
    }

    fn pack_as(&self, shape: Shape, format: WeightFormat) -> Packed {
        let source = Source {
            weights: self.weights.as_ptr(),
            rows: self.rows,
            in_features: self.in_features,
        };
        Packed::pack(source, shape, format)
    }

    /// The sum of `row` of the input with `column` of the weights, and the sum of the magnitudes of its products.
    fn expected(&self, row: usize, column: usize) -> (f64, f64) {
        let products = (0..self.in_features).map(|n| {
            f64::from(self.input[row * self.in_features + n])
                * f64::from(bf16::to_f32(self.weights[column * self.in_features + n]))
        });
        products.fold((0.0, 1e-9), |(sum, size), product| {
            (sum + product, size + product.abs())
        })
    }
}

fn run(packed: &Packed, case: &Case) -> Vec<f32> {
    let mut output = vec![f32::NAN; case.num_rows * packed.out_features];
    let bias = case
        .bias
        .as_ref()
        .map(|bias| padded(bias, packed.out_features));
    let activations = Activations {
        input: case.input.as_ptr(),
        input_stride: case.in_features,
        bias: bias.as_ref().map_or(std::ptr::null(), |bias| bias.as_ptr()),
        output: output.as_mut_ptr(),
        output_stride: packed.out_features,
        num_rows: case.num_rows,
    };
    let weights = Weights {
        now: packed,
        next: Some(packed),
    };
    unsafe {
        multiply(
            &mut pool::lock(),
            &mut Scratch::default(),
            weights,
            activations,
        )
    };
    output
}

/// Each part of a bias with zeros up to whole panels.
fn padded(bias: &[f32], part: usize) -> Vec<f32> {
    let pad = |part: &[f32]| {
        [
            part,
            &vec![0.0; part.len().next_multiple_of(PANEL) - part.len()],
        ]
        .concat()
    };
    bias.chunks(part).flat_map(pad).collect()
}

const SIZES: [(usize, usize); 8] = [
    (1, 1),
    (7, 3),
    (32, 2),
    (33, 64),
    (64, 31),
    (96, 130),
    (160, 17),
    (300, 256),
];

#[test]
fn sums_equal_those_in_float64_for_every_size() {
    pool::start(2);
    let mut random = Random::new(1);
    with_every_instruction_set(|tolerance| {
        for size in SIZES {
            for num_rows in [0, 1, 2, 5, 6, 7, 12, 13, 31] {
                let case = Case::random(&mut random, size, num_rows);
                let output = run(&case.pack(Shape::Plain), &case);
                for row in 0..num_rows {
                    for column in 0..case.rows {
                        let (sum, magnitude) = case.expected(row, column);
                        let bias = case
                            .bias
                            .as_ref()
                            .map_or(0.0, |bias| f64::from(bias[column]));
                        let got = f64::from(output[row * case.rows + column]);
                        let error = (got - sum - bias).abs();
                        assert!(
                            error <= tolerance * (magnitude + 1.0),
                            "{size:?} x {num_rows} at {row}, {column}: {got}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn gated_products_are_silu_of_the_gate_times_up() {
    let mut random = Random::new(2);
    with_every_instruction_set(|tolerance| {
        for (out_features, in_features) in [(1, 4), (20, 16), (32, 64), (50, 33), (96, 128)] {
            for num_rows in [1, 3, 6, 14] {
                let case = Case::random(&mut random, (2 * out_features, in_features), num_rows);
                let output = run(&case.pack(Shape::Gated), &case);
                for row in 0..num_rows {
                    for column in 0..out_features {
                        let (gate, size) = case.expected(row, column);
                        let (up, other_size) = case.expected(row, out_features + column);
                        let bias = |column: usize| {
                            case.bias
                                .as_ref()
                                .map_or(0.0, |bias| f64::from(bias[column]))
                        };
                        let (gate, up) = (gate + bias(column), up + bias(out_features + column));
                        let expected = gate / (1.0 + (-gate).exp()) * up;
                        let error =
                            (f64::from(output[row * out_features + column]) - expected).abs();
                        // Each factor is wrong by up to the tolerance times its size.
                        assert!(
                            error <= 2.0 * tolerance * (size + 1.0) * (other_size + 1.0),
                            "{row}, {column}: {expected}"
                        );
                    }
                }
            }
        }
    });
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let mut random = Random::new(3);
    with_every_instruction_set(|_| {
        let mut case = Case::random(&mut random, (200, 190), 40);
        let packed = case.pack(Shape::Plain);
        let together = run(&packed, &case);
        for row in [0, 5, 12, 39] {
            let alone = Case {
                input: case.input[row * 190..(row + 1) * 190].to_vec(),
                num_rows: 1,
                ..case
            };
            assert_eq!(run(&packed, &alone), together[row * 200..(row + 1) * 200]);
            case = Case {
                input: case.input,
                num_rows: 40,
                ..alone
            };
        }
    });
}

/// Weights of which some have exponents that no others have: zeros of both signs, tiny, huge and subnormal ones.
fn with_rare_exponents(random: &mut Random, size: (usize, usize), num_rows: usize) -> Case {
    let mut case = Case::random(random, size, num_rows);
    let specials = [
        0.0, -0.0, 1e-30, -1e-20, 1e-38, 3e-39, 5e4, 1e-12, -1e-13, 2e3, 3e-15, 1e-16,
    ];
    for (n, special) in specials.into_iter().enumerate() {
        let at = random.below(case.weights.len() / 13) + n * case.weights.len() / 13;
        case.weights[at] = bf16::from_f32(special);
    }
    case
}

#[test]
fn compact_weights_are_exactly_the_weights() {
    let mut random = Random::new(9);
    let case = with_rare_exponents(&mut random, (80, 300), 0);
    let packed = case.pack_as(Shape::Plain, WeightFormat::Compact);
    assert_eq!(packed.format, WeightFormat::Compact);
    assert!(
        (0..3).any(|panel| !packed.escapes(panel).is_empty()),
        "there were weights to list"
    );
    for row in 0..80 {
        let mut unpacked = vec![0.0; 300];
        packed.unpack_row(row, &mut unpacked);
        let bits: Vec<u16> = unpacked.into_iter().map(bf16::from_f32).collect();
        assert_eq!(bits, case.weights[row * 300..(row + 1) * 300]);
    }
}

#[test]
fn compact_products_have_the_bits_of_plain_ones_where_all_weights_are_in_their_panels() {
    let mut random = Random::new(10);
    with_every_instruction_set(|_| {
        for (size, shape) in [((75, 130), Shape::Plain), ((128, 66), Shape::Gated)] {
            for num_rows in [1, 2, 5, 6, 7, 13, 30] {
                let mut case = Case::random(&mut random, size, num_rows);
                for bits in &mut case.weights {
                    *bits |= 0x3c00; // few exponents
                }
                let plain = case.pack_as(shape, WeightFormat::Bf16);
                let compact = case.pack_as(shape, WeightFormat::Compact);
                assert!(compact.num_bytes() < plain.num_bytes());
                let num_escapes: usize = (0..2).map(|panel| compact.escapes(panel).len()).sum();
                assert_eq!(num_escapes, 0);
                assert_eq!(run(&compact, &case), run(&plain, &case));
            }
        }
    });
}

#[test]
fn weights_beside_their_panel_count_the_same_alone_and_among_others() {
    let mut random = Random::new(11);
    with_every_instruction_set(|tolerance| {
        let mut case = with_rare_exponents(&mut random, (70, 310), 9);
        case.bias = None;
        let packed = case.pack_as(Shape::Plain, WeightFormat::Compact);
        assert_eq!(packed.format, WeightFormat::Compact);
        let together = run(&packed, &case);
        for row in 0..9 {
            for column in 0..70 {
                let (sum, magnitude) = case.expected(row, column);
                let error = (f64::from(together[row * 70 + column]) - sum).abs();
                assert!(
                    error <= tolerance * (magnitude + 1.0),
                    "{row}, {column}: {sum}"
                );
            }
        }
        let alone = Case {
            input: case.input[8 * 310..].to_vec(),
            num_rows: 1,
            weights: Vec::new(),
            bias: None,
            ..case
        };
        assert_eq!(run(&packed, &alone), together[8 * 70..]);
    });
}

#[test]
fn weights_of_too_many_exponents_are_kept_as_they_are() {
    let mut random = Random::new(12);
    let mut case = Case::random(&mut random, (64, 64), 2);
    for bits in &mut case.weights {
        *bits = (random.next() as u16) & 0xbfff; // any exponent below that of infinity
    }
    let packed = case.pack_as(Shape::Plain, WeightFormat::Compact);
    assert_eq!(packed.format, WeightFormat::Bf16);
    let plain = case.pack_as(Shape::Plain, WeightFormat::Bf16);
    assert_eq!(run(&packed, &case), run(&plain, &case));
}

#[test]
fn unpacked_rows_are_the_weights() {
    let mut random = Random::new(4);
    let case = Case::random(&mut random, (70, 45), 0);
    let packed = case.pack(Shape::Plain);
    for row in 0..70 {
        let mut unpacked = vec![0.0; 45];
        packed.unpack_row(row, &mut unpacked);
        let expected: Vec<f32> = case.weights[row * 45..(row + 1) * 45]
            .iter()
            .map(|bits| bf16::to_f32(*bits))
            .collect();
        assert_eq!(unpacked, expected);
    }
}

/// What rounding of activations to eight bits may do to a sum, relative to the size of its products.
const ROUNDING: f64 = 0.02;

#[test]
fn quantized_products_are_those_of_the_rounded_weights() {
    let mut random = Random::new(5);
    with_every_instruction_set(|_| {
        for format in [WeightFormat::Int8, WeightFormat::Int4] {
            for size in [(1, 1), (33, 40), (64, 64), (70, 200), (96, 321)] {
                for num_rows in [1, 2, 3, 4, 7, 13] {
                    let mut case = Case::random(&mut random, size, num_rows);
                    case.bias = None;
                    let packed = case.pack_as(Shape::Plain, format);
                    let output = run(&packed, &case);
                    let mut weights = vec![0.0; case.in_features];
                    for column in 0..case.rows {
                        packed.unpack_row(column, &mut weights);
                        for row in 0..num_rows {
                            let input = &case.input[row * case.in_features..];
                            let products = weights
                                .iter()
                                .zip(input)
                                .map(|(a, b)| f64::from(*a) * f64::from(*b));
                            let (sum, magnitude) = products
                                .fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                            let error = (f64::from(output[row * case.rows + column]) - sum).abs();
                            assert!(
                                error <= ROUNDING * magnitude + 1e-6,
                                "{format:?} {size:?} x {num_rows} at {row}, {column}"
                            );
                        }
                    }
                }
            }
        }
    });
}

#[test]
fn quantized_products_have_the_same_bits_on_every_instruction_set_and_in_every_batch() {
    let mut random = Random::new(6);
    for format in [WeightFormat::Int8, WeightFormat::Int4] {
        let case = Case::random(&mut random, (100, 192), 9);
        let packed = case.pack_as(Shape::Plain, format);
        let mut results = Vec::new();
        with_every_instruction_set(|_| {
            let together = run(&packed, &case);
            let alone = Case {
                input: case.input[8 * 192..].to_vec(),
                num_rows: 1,
                bias: case.bias.clone(),
                weights: Vec::new(),
                ..case
            };
            assert_eq!(run(&packed, &alone), together[800..]);
            results.push(together);
        });
        for result in &results {
            // Products are exact; what differs is whether multiply and add round once or twice.
            for (a, b) in result.iter().zip(&results[0]) {
                assert!((a - b).abs() <= 1e-4, "{a} and {b}");
            }
        }
    }
}

#[test]
fn quantized_weights_are_near_the_weights() {
    let mut random = Random::new(7);
    let case = Case::random(&mut random, (40, 256), 0);
    for (format, tolerance) in [
        (WeightFormat::Int8, 1.0 / 127.0),
        (WeightFormat::Int4, 1.0 / 7.0 * 2.0),
    ] {
        let packed = case.pack_as(Shape::Plain, format);
        let mut unpacked = vec![0.0; 256];
        for row in 0..40 {
            packed.unpack_row(row, &mut unpacked);
            for (value, bits) in unpacked.iter().zip(&case.weights[row * 256..]) {
                assert!(
                    (value - bf16::to_f32(*bits)).abs() <= tolerance,
                    "{format:?}"
                );
            }
        }
    }
}

#[test]
fn a_bad_activation_is_not_rounded_away() {
    let mut random = Random::new(8);
    with_every_instruction_set(|_| {
        for format in [WeightFormat::Bf16, WeightFormat::Int8, WeightFormat::Int4] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut case = Case::random(&mut random, (5, 130), 2);
                case.input[130 + 77] = bad;
                let output = run(&case.pack_as(Shape::Plain, format), &case);
                assert!(output[..5].iter().all(|value| value.is_finite()));
                assert!(
                    output[5..].iter().all(|value| !value.is_finite()),
                    "{format:?}"
                );
            }
        }
    });
}
