//! The C interface, for the shard. No function here allocates for its caller except `tgk_pack`, whose result `tgk_free` takes,
//! and `tgk_program_new`, whose result `tgk_program_free` takes.
//!
//! Safety of all of them: pointers hold what the named structure says, for as long as the call lasts, and come from one
//! thread at a time. A panic would be a bug of this crate and ends the process.

use std::ffi::{CStr, c_char};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::attention::{self, Attend};
use crate::buffer::Scratch;
use crate::draw::{self, Draw};
use crate::linear::{self, Activations, Weights};
use crate::packed::{Packed, Shape, Source, WeightFormat};
use crate::pointwise::{self, Normalize, Rotate};
use crate::program::{Call, Program, Step};
use crate::simd::InstructionSet;
use crate::summary::{self, Summarize};
use crate::table::{self, LookUp};
use crate::{pool, simd};

static SCRATCH: Mutex<Option<Scratch>> = Mutex::new(None);

fn lock_scratch() -> MutexGuard<'static, Option<Scratch>> {
    SCRATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the threads that all kernels share. Only the first call does anything.
#[unsafe(no_mangle)]
pub extern "C" fn tgk_start(num_threads: usize) {
    pool::start(num_threads);
}

/// The instruction set in use, as a number (see `InstructionSet`).
#[unsafe(no_mangle)]
pub extern "C" fn tgk_instruction_set() -> u8 {
    simd::chosen() as u8
}

/// Uses the instruction set called `name` from now on. 0 where there is none of that name or the processor lacks it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_choose_instruction_set(name: *const c_char) -> u8 {
    let name = unsafe { CStr::from_ptr(name) };
    let set = InstructionSet::ALL
        .into_iter()
        .find(|set| name.to_str() == Ok(set.name()));
    u8::from(set.is_some_and(simd::choose))
}

/// Packs a bf16 matrix [rows, in_features], with so many bits to a weight: 16, 8 or 4. The caller may free it afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_pack(
    weights: *const u16,
    rows: usize,
    in_features: usize,
    is_gated: u8,
    num_bits: u8,
) -> *mut Packed {
    let format = match num_bits {
        4 => WeightFormat::Int4,
        8 => WeightFormat::Int8,
        _ => WeightFormat::Compact,
    };
    let shape = if is_gated == 0 {
        Shape::Plain
    } else {
        Shape::Gated
    };
    let source = Source {
        weights,
        rows,
        in_features,
    };
    Box::into_raw(Box::new(Packed::pack(source, shape, format)))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_free(packed: *mut Packed) {
    drop(unsafe { Box::from_raw(packed) });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_packed_bytes(packed: *const Packed) -> usize {
    unsafe { &*packed }.num_bytes()
}

/// See `linear::multiply`. Rows of input and output are dense.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_multiply(
    packed: *const Packed,
    input: *const f32,
    num_rows: usize,
    bias: *const f32,
    output: *mut f32,
) {
    let packed = unsafe { &*packed };
    let activations = dense(packed, input, num_rows, (bias, output));
    let mut scratch = lock_scratch();
    let scratch = scratch.get_or_insert_with(Scratch::default);
    unsafe { linear::multiply(&mut pool::lock(), scratch, Weights::of(packed), activations) };
}

/// Activations whose rows lie side by side.
fn dense(
    packed: &Packed,
    input: *const f32,
    num_rows: usize,
    (bias, output): (*const f32, *mut f32),
) -> Activations {
    Activations {
        input,
        input_stride: packed.in_features,
        bias,
        output,
        output_stride: packed.out_features,
        num_rows,
    }
}

/// See `pointwise::gather`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_gather(
    packed: *const Packed,
    rows: *const i64,
    num_rows: usize,
    output: *mut f32,
) {
    unsafe { pointwise::gather(&mut pool::lock(), &*packed, rows, (output, num_rows)) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_normalize(normalize: *const Normalize) {
    unsafe { pointwise::normalize(&mut pool::lock(), *normalize) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_rotate_and_write(rotate: *const Rotate) {
    unsafe { pointwise::rotate_and_write(&mut pool::lock(), *rotate) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_attend(attend: *const Attend) {
    unsafe { attention::attend(&mut pool::lock(), *attend) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_summarize(summarize: *const Summarize) {
    unsafe { summary::summarize(&mut pool::lock(), *summarize) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_draw(draw: *const Draw) {
    unsafe { draw::draw(&mut pool::lock(), *draw) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_look_up(look_up: *const LookUp) {
    unsafe { table::look_up(*look_up) };
}

/// An empty program. What is added to it must live as long as it does: weights, activations and the KV cache.
#[unsafe(no_mangle)]
pub extern "C" fn tgk_program_new() -> *mut Program {
    Box::into_raw(Box::default())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_free(program: *mut Program) {
    drop(unsafe { Box::from_raw(program) });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_multiply(
    program: *mut Program,
    weights: *const Packed,
    input: *const f32,
    bias: *const f32,
    output: *mut f32,
) {
    let activations = dense(unsafe { &*weights }, input, 0, (bias, output));
    let call = Call::Multiply {
        weights,
        activations,
    };
    unsafe { &mut *program }.add(call);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_gather(
    program: *mut Program,
    weights: *const Packed,
    output: *mut f32,
) {
    unsafe { &mut *program }.add(Call::Gather { weights, output });
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_normalize(
    program: *mut Program,
    normalize: *const Normalize,
) {
    unsafe { &mut *program }.add(Call::Normalize(unsafe { *normalize }));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_rotate_and_write(
    program: *mut Program,
    rotate: *const Rotate,
) {
    unsafe { &mut *program }.add(Call::Rotate(unsafe { *rotate }));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_attend(program: *mut Program, attend: *const Attend) {
    unsafe { &mut *program }.add(Call::Attend(unsafe { *attend }));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_add_look_up(program: *mut Program, look_up: *const LookUp) {
    unsafe { &mut *program }.add(Call::LookUp(unsafe { *look_up }));
}

/// See `Program::run`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn tgk_program_run(program: *const Program, step: *const Step) {
    let mut scratch = lock_scratch();
    let scratch = scratch.get_or_insert_with(Scratch::default);
    unsafe { (*program).run(&mut pool::lock(), scratch, &*step) };
}
