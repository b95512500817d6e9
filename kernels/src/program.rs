//! The kernels of a whole step, written down once and run in one call, for any number of tokens: what a CUDA graph is to a GPU.
//!
//! Addresses of weights, activations and the KV cache stay from step to step; everything that a step brings is in `Step`. A
//! program calls the same functions as the single calls do, so that it computes the same.

use crate::attention::{self, Attend, Rows};
use crate::buffer::Scratch;
use crate::linear::{self, Activations, Weights};
use crate::packed::Packed;
use crate::pointwise::{self, Normalize, Rotate};
use crate::pool::Pool;
use crate::table::{self, LookUp};

/// What differs between two steps.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Step {
    pub num_tokens: usize,
    /// [tokens] each a row of the embedding.
    pub token_ids: *const i64,
    /// [tokens] each a row of the tables that the program looks up.
    pub positions: *const i64,
    /// [tokens] as in `Rotate`.
    pub slots: *const i64,
    pub rows: Rows,
}

/// A kernel with its arguments. Their numbers of tokens, and what `Step` has, are those of the step that is run.
pub enum Call {
    /// The embeddings of the step's tokens.
    Gather {
        weights: *const Packed,
        output: *mut f32,
    },
    /// The rows of the step's positions.
    LookUp(LookUp),
    Normalize(Normalize),
    Multiply {
        weights: *const Packed,
        activations: Activations,
    },
    Rotate(Rotate),
    Attend(Attend),
}

/// Calls in order.
#[derive(Default)]
pub struct Program {
    calls: Vec<Call>,
}

impl Program {
    pub fn add(&mut self, call: Call) {
        self.calls.push(call);
    }

    /// # Safety
    /// The pointers of the calls and of `step` hold what the kernels say, for as many tokens as the step has.
    pub unsafe fn run(&self, pool: &mut Pool, scratch: &mut Scratch, step: &Step) {
        for (n, call) in self.calls.iter().enumerate() {
            call.run(pool, scratch, step, self.weights_after(n));
        }
    }

    /// The weights of the first product after call number `n`.
    unsafe fn weights_after(&self, n: usize) -> Option<&Packed> {
        self.calls[n + 1..].iter().find_map(|call| match call {
            Call::Multiply { weights, .. } => Some(&**weights),
            _ => None,
        })
    }
}

impl Call {
    unsafe fn run(
        &self,
        pool: &mut Pool,
        scratch: &mut Scratch,
        step: &Step,
        next_weights: Option<&Packed>,
    ) {
        let num_rows = step.num_tokens;
        match *self {
            Call::Gather { weights, output } => {
                pointwise::gather(pool, &*weights, step.token_ids, (output, num_rows));
            }
            Call::LookUp(look_up) => table::look_up(LookUp {
                rows: step.positions,
                num_rows,
                ..look_up
            }),
            Call::Normalize(normalize) => {
                pointwise::normalize(
                    pool,
                    Normalize {
                        num_rows,
                        ..normalize
                    },
                );
            }
            Call::Multiply {
                weights,
                activations,
            } => {
                let activations = Activations {
                    num_rows,
                    ..activations
                };
                let weights = Weights {
                    now: &*weights,
                    next: next_weights,
                };
                linear::multiply(pool, scratch, weights, activations);
            }
            Call::Rotate(rotate) => {
                let rotate = Rotate {
                    slots: step.slots,
                    num_tokens: num_rows,
                    ..rotate
                };
                pointwise::rotate_and_write(pool, rotate);
            }
            Call::Attend(attend) => {
                let rows = step.rows;
                attention::attend(pool, Attend { rows, ..attend });
            }
        }
    }
}
