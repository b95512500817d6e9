//! bf16 weights in twelve bits, exactly. The weights of a matrix have few exponents: where fifteen of them and zero are nearly
//! all there is, a weight is its sign and mantissa in a byte and the number of its exponent in half a byte. The few weights
//! with other exponents are zero in the panel and listed beside it.
//!
//! A step of few rows is bound by the bytes of the weights, and this is a quarter less of them.

use crate::packed::{PANEL, Source};
use crate::simd::LANES;

/// Inputs that are packed together.
const GROUP: usize = 4;
/// Pairs of inputs of a group.
pub const PAIRS: usize = GROUP / 2;
/// Bytes of a vector of sixteen pairs: sign and mantissa of each weight.
const VECTOR_BYTES: usize = 2 * LANES;
/// Vectors of a group, then a word for each place in a vector with the exponents there, four bits for each vector.
pub const NUM_VECTORS: usize = PAIRS * PANEL / LANES;
pub const GROUP_BYTES: usize = (NUM_VECTORS + 2) * VECTOR_BYTES;
/// More of them would cost more than they save.
const MOST_ESCAPES: f64 = 1.0 / 500.0;
/// Rows of a matrix that tell which exponents it has.
const SAMPLED_ROWS: usize = 64;

const NUM_CODES: usize = 16;
const ESCAPE: u8 = u8::MAX;

/// The exponent of each code. Code 0 is that of zero.
pub type Exponents = [u8; NUM_CODES];

/// A weight that is not in its panel.
#[derive(Clone, Copy)]
pub struct Escape {
    pub input: u32,
    /// Of the panel.
    pub column: u32,
    pub weight: u16,
}

pub fn num_groups(in_features: usize) -> usize {
    in_features.div_ceil(GROUP)
}

pub fn panel_bytes(in_features: usize) -> usize {
    num_groups(in_features) * GROUP_BYTES
}

/// Bytes of a panel that was expanded to bf16.
pub fn expanded_bytes(in_features: usize) -> usize {
    num_groups(in_features) * NUM_VECTORS * LANES * 4
}

pub fn too_many(num_escapes: usize, source: &Source) -> bool {
    num_escapes as f64 > MOST_ESCAPES * (source.rows * source.in_features) as f64
}

/// The most frequent exponents of some rows.
pub fn frequent_exponents(source: &Source) -> Exponents {
    let mut counts = [0_usize; 256];
    for row in (0..source.rows).step_by(source.rows.div_ceil(SAMPLED_ROWS).max(1)) {
        for bits in source.row(row) {
            counts[usize::from(exponent(*bits))] += 1;
        }
    }
    let mut order: Vec<u8> = (1..=u8::MAX).collect();
    order.sort_by_key(|exponent| std::cmp::Reverse(counts[usize::from(*exponent)]));
    let mut exponents = [0; NUM_CODES];
    exponents[1..].copy_from_slice(&order[..NUM_CODES - 1]);
    exponents
}

fn exponent(bits: u16) -> u8 {
    (bits >> 7) as u8
}

/// The code of every exponent.
pub struct Codes([u8; 256]);

impl Codes {
    pub fn new(exponents: &Exponents) -> Self {
        let mut codes = [ESCAPE; 256];
        for (code, exponent) in exponents.iter().enumerate() {
            codes[usize::from(*exponent)] = code as u8;
        }
        Self(codes)
    }
}

/// Where a weight is: its group, its vector there, its place in the vector.
fn place(input: usize, column: usize) -> (usize, usize, usize) {
    let vector = input % GROUP / 2 * (PANEL / LANES) + column / LANES;
    (input / GROUP, vector, column % LANES * 2 + input % 2)
}

/// Packs a panel. `rows` are the bf16 of all inputs for each of its columns, of which the last may lack some.
///
/// # Safety
/// `panel` has `panel_bytes`, and there are at most `PANEL` rows.
pub unsafe fn pack_panel(
    rows: &[&[u16]],
    panel: *mut u8,
    codes: &Codes,
    escapes: &mut Vec<Escape>,
) {
    let in_features = rows.first().map_or(0, |row| row.len());
    for group in 0..num_groups(in_features) {
        // A group at a time, so that every line of memory is written once.
        let mut bytes = [0_u8; NUM_VECTORS * VECTOR_BYTES];
        let mut words = [0_u16; VECTOR_BYTES];
        let inputs = group * GROUP..((group + 1) * GROUP).min(in_features);
        for (column, row) in rows.iter().enumerate() {
            for (n, bits) in row[inputs.clone()].iter().enumerate() {
                let code = codes.0[usize::from(exponent(*bits))];
                if code == ESCAPE {
                    escapes.push(Escape {
                        input: (inputs.start + n) as u32,
                        column: column as u32,
                        weight: *bits,
                    });
                    continue;
                }
                let (_, vector, place) = place(n, column);
                bytes[vector * VECTOR_BYTES + place] = (bits >> 8 & 0x80 | bits & 0x7f) as u8;
                words[place] |= u16::from(code) << (4 * vector);
            }
        }
        let to = panel.add(group * GROUP_BYTES);
        to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        exponent_words(to).copy_from_nonoverlapping(words.as_ptr(), words.len());
    }
}

unsafe fn exponent_words(group: *mut u8) -> *mut u16 {
    group.add(NUM_VECTORS * VECTOR_BYTES).cast()
}

/// One weight of a packed panel, zero where it is listed beside it.
///
/// # Safety
/// As `pack_panel`; the panel was packed.
pub unsafe fn unpack(
    panel: *const u8,
    (input, column): (usize, usize),
    exponents: &Exponents,
) -> u16 {
    let (group, vector, place) = place(input, column);
    expand(panel.add(group * GROUP_BYTES), vector, place, exponents)
}

/// The bits of the weight at `place` of a vector of a group.
#[inline(always)]
pub(crate) unsafe fn expand(
    group: *const u8,
    vector: usize,
    place: usize,
    exponents: &Exponents,
) -> u16 {
    let byte = u16::from(*group.add(vector * VECTOR_BYTES + place));
    let codes = *exponent_words(group.cast_mut()).add(place);
    let exponent = exponents[usize::from(codes >> (4 * vector) & 15)];
    (byte & 0x80) << 8 | u16::from(exponent) << 7 | byte & 0x7f
}

/// Where the exponents of a group begin.
#[inline(always)]
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn parts(group: *const u8, vector: usize) -> (*const u8, *const u8) {
    (
        group.add(vector * VECTOR_BYTES),
        group.add(NUM_VECTORS * VECTOR_BYTES),
    )
}
