//! Compiles `proto/` with protox, so that no system `protoc` is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(
        [
            "isthmus/proxy.proto",
            "isthmus/tap.proto",
            "isthmus/discovery.proto",
            "isthmus/zone.proto",
            "isthmus/raft.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
