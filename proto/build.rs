//! Compiles the .proto files with protox, so that no `protoc` has to be installed.
use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=weft");
    let files = ["weft/v1/discovery.proto", "weft/v1/certificates.proto"];
    let descriptors = protox::compile(files, ["."])?;
    // `tests/fields.rs` compares them with what was agreed.
    let out = std::path::PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    std::fs::write(out.join("weft.v1.binpb"), descriptors.encode_to_vec())?;
    // Ordered maps, because a resource's version is a hash of its encoding.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
