//! Compiles `isotope/v1/*.proto` without a system `protoc`.

use std::error::Error;

const FILES: [&str; 6] = [
    "isotope/v1/library.proto",
    "isotope/v1/feed.proto",
    "isotope/v1/cluster.proto",
    "isotope/v1/content.proto",
    "isotope/v1/upload.proto",
    "isotope/v1/host.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .bytes(".isotope.v1.ReadChunk.data")
        .bytes(".isotope.v1.StageWrite.data")
        .bytes(".isotope.v1.StageData.data")
        .compile_fds(descriptors)?;
    Ok(())
}
