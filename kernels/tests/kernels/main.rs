//! Every kernel on every instruction set of this processor, against plain sums in float64.

mod attention;
mod common;
mod products;
