//! The arithmetic of the shard on CPUs: products with packed weights, paged attention and the small operations of a decoder
//! layer. Knows tensors as pointers and sizes; models, tokens and requests are unknown here.

pub mod attention;
pub mod bf16;
pub mod buffer;
pub mod compact;
pub mod draw;
pub mod ffi;
pub mod kv_layout;
pub mod linear;
pub mod packed;
pub mod pointwise;
pub mod pool;
pub mod products;
pub mod program;
pub mod quantized;
pub mod simd;
pub mod summary;
pub mod table;
