//! The client side of `proto/shard.proto`: the only place that knows tonic, prost and generated code.

/// Generated from `proto/shard.proto`.
#[allow(clippy::all, missing_docs)]
pub(crate) mod proto {
    tonic::include_proto!("text_gen.shard.v1");
}
