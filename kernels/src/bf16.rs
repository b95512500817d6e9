//! bfloat16: the upper half of a float32.

pub fn to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to the nearest, halves to even. NaN stays NaN.
pub fn from_f32(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    let is_odd = (bits >> 16) & 1;
    (bits.wrapping_add(0x7fff + is_odd) >> 16) as u16
}
