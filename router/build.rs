//! Compiles `proto/shard.proto` without protoc.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = Path::new("../proto");
    println!("cargo:rerun-if-changed=../proto/shard.proto");
    let descriptors = protox::compile(["shard.proto"], [folder])?;
    tonic_prost_build::configure()
        .build_transport(false)
        .compile_fds(descriptors)?;
    Ok(())
}
