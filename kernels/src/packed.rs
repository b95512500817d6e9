//! Weights of a linear layer, rearranged once into the order in which the products read them: panels of 32 output columns,
//! within a panel everything along the inputs. The same for every instruction set.

use std::sync::{Mutex, PoisonError};

use crate::bf16;
use crate::buffer::Buffer;
use crate::compact::{self, Codes, Escape, Exponents};
use crate::pool;
use crate::quantized::{self, Int4, Int8};

/// Output columns of a panel.
pub const PANEL: usize = 32;

/// How a weight is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightFormat {
    /// Per panel [pairs of inputs][32 columns] of two bf16.
    Bf16,
    /// The same weights in fewer bytes, see `compact`. Becomes `Bf16` where they do not fit.
    Compact,
    /// See `quantized`.
    Int8,
    Int4,
}

/// A matrix as it comes from a checkpoint.
#[derive(Clone, Copy)]
pub struct Source {
    /// [rows, in_features] bf16, row after row
    pub weights: *const u16,
    pub rows: usize,
    pub in_features: usize,
}

// SAFETY: it is only read, while the caller keeps it alive.
unsafe impl Sync for Source {}

impl Source {
    pub(crate) fn row(&self, row: usize) -> &[u16] {
        debug_assert!(row < self.rows);
        // SAFETY: within the matrix.
        unsafe {
            std::slice::from_raw_parts(self.weights.add(row * self.in_features), self.in_features)
        }
    }
}

/// What becomes of the sums of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// They are the outputs.
    Plain,
    /// The first half of the rows are gates: an output is silu(gate) * up. Panels of gates and of ups take turns.
    Gated,
}

pub struct Packed {
    pub format: WeightFormat,
    pub shape: Shape,
    pub in_features: usize,
    /// Columns of the result: half the rows of the source where the shape is gated.
    pub out_features: usize,
    pub num_panels: usize,
    panel_bytes: usize,
    data: Buffer,
    /// Of `Compact`: what the codes mean, and the weights of each panel that have none.
    pub exponents: Exponents,
    escapes: Vec<Vec<Escape>>,
}

impl Packed {
    /// Packs on all threads.
    pub fn pack(source: Source, shape: Shape, format: WeightFormat) -> Self {
        let mut packed = Self::empty(&source, shape, format);
        if format == WeightFormat::Compact {
            packed.exponents = compact::frequent_exponents(&source);
        }
        let codes = Codes::new(&packed.exponents);
        let escapes: Vec<Mutex<Vec<Escape>>> =
            (0..packed.num_panels).map(|_| Mutex::default()).collect();
        pool::lock().run(packed.num_panels, &|panel| {
            let to = packed.panel(panel).cast_mut();
            let mut escapes = escapes[panel]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let rows: Vec<&[u16]> = (packed.source_rows(panel))
                .map(|row| source.row(row))
                .collect();
            // SAFETY: each task writes its own panel, which has a column for each of the rows.
            unsafe {
                match format {
                    WeightFormat::Bf16 => pack_bf16(&rows, to.cast()),
                    WeightFormat::Compact => {
                        compact::pack_panel(&rows, to, &codes, &mut escapes);
                    }
                    WeightFormat::Int8 => quantized::pack_panel::<Int8>(&rows, to),
                    WeightFormat::Int4 => quantized::pack_panel::<Int4>(&rows, to),
                }
            }
        });
        packed.escapes = (escapes.into_iter())
            .map(|escapes| escapes.into_inner().unwrap_or_else(PoisonError::into_inner))
            .collect();
        if compact::too_many(packed.escapes.iter().map(Vec::len).sum(), &source) {
            drop(packed); // first give back, then take
            return Self::pack(source, shape, WeightFormat::Bf16);
        }
        packed
    }

    fn empty(source: &Source, shape: Shape, format: WeightFormat) -> Self {
        let halves = if shape == Shape::Gated { 2 } else { 1 };
        let out_features = source.rows / halves;
        let num_panels = out_features.div_ceil(PANEL) * halves;
        let panel_bytes = match format {
            WeightFormat::Bf16 => source.in_features.div_ceil(2) * PANEL * 4,
            WeightFormat::Compact => compact::panel_bytes(source.in_features),
            WeightFormat::Int8 => quantized::panel_bytes::<Int8>(source.in_features),
            WeightFormat::Int4 => quantized::panel_bytes::<Int4>(source.in_features),
        };
        Self {
            format,
            shape,
            in_features: source.in_features,
            out_features,
            num_panels,
            panel_bytes,
            data: Buffer::beside_others(num_panels * panel_bytes),
            exponents: Exponents::default(),
            escapes: Vec::new(),
        }
    }

    /// Weights of a panel that count as zero there.
    pub fn escapes(&self, panel: usize) -> &[Escape] {
        &self.escapes[panel]
    }

    pub fn panel(&self, panel: usize) -> *const u8 {
        debug_assert!(panel < self.num_panels);
        // SAFETY: within the buffer.
        unsafe { self.data.as_ptr::<u8>().add(panel * self.panel_bytes) }
    }

    pub fn panel_bytes(&self) -> usize {
        self.panel_bytes
    }

    pub fn num_bytes(&self) -> usize {
        self.num_panels * self.panel_bytes
    }

    /// Rows of the source in `panel`, at most `PANEL`.
    fn source_rows(&self, panel: usize) -> std::ops::Range<usize> {
        let (block, start) = match self.shape {
            Shape::Plain => (panel, 0),
            Shape::Gated => (panel / 2, panel % 2 * self.out_features),
        };
        let end = ((block + 1) * PANEL).min(self.out_features);
        start + block * PANEL..start + end
    }

    /// Writes the weights of one row of the source as float32. For a plain shape only.
    pub fn unpack_row(&self, row: usize, to: &mut [f32]) {
        debug_assert!(self.shape == Shape::Plain && row < self.out_features);
        debug_assert_eq!(to.len(), self.in_features);
        let (number, lane) = (row / PANEL, row % PANEL);
        let panel = self.panel(number);
        for (input, value) in to.iter_mut().enumerate() {
            // SAFETY: within the panel.
            *value = match self.format {
                WeightFormat::Bf16 => unsafe { unpack_bf16(panel.cast(), input, lane) },
                WeightFormat::Compact => {
                    bf16::to_f32(unsafe { compact::unpack(panel, (input, lane), &self.exponents) })
                }
                WeightFormat::Int8 => unsafe { quantized::unpack::<Int8>(panel, input, lane) },
                WeightFormat::Int4 => unsafe { quantized::unpack::<Int4>(panel, input, lane) },
            };
        }
        for escape in self.escapes(number) {
            if escape.column as usize == lane {
                to[escape.input as usize] = bf16::to_f32(escape.weight);
            }
        }
    }
}

/// Where a bf16 weight is in its panel.
fn place(input: usize, column: usize) -> usize {
    (input / 2 * PANEL + column) * 2 + input % 2
}

/// Some inputs at a time, so that a line of memory is written to the end while it is near.
unsafe fn pack_bf16(rows: &[&[u16]], panel: *mut u16) {
    const INPUTS: usize = 32;
    let in_features = rows.first().map_or(0, |row| row.len());
    for first in (0..in_features).step_by(INPUTS) {
        let inputs = first..(first + INPUTS).min(in_features);
        for (column, row) in rows.iter().enumerate() {
            for input in inputs.clone() {
                *panel.add(place(input, column)) = row[input];
            }
        }
    }
}

unsafe fn unpack_bf16(panel: *const u16, input: usize, column: usize) -> f32 {
    bf16::to_f32(*panel.add(place(input, column)))
}
