//! Products with packed weights against sums in float64.

use crate::common::{Random, with_every_instruction_set};
use text_gen_kernels::bf16;
use text_gen_kernels::buffer::Scratch;
use text_gen_kernels::linear::{Activations, multiply};
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

    fn pack(&self, shape: Shape) -> Packed {
        let source = Source {
            weights: self.weights.as_ptr(),
            rows: self.rows,
            in_features: self.in_features,
        };
        Packed::pack(source, shape, WeightFormat::Bf16)
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
    unsafe {
        multiply(
            &mut pool::lock(),
            &mut Scratch::default(),
            packed,
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
