//! Compiles the .proto files with protox, so that no `protoc` has to be installed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=weft");
    let files = ["weft/v1/discovery.proto", "weft/v1/certificates.proto"];
    let descriptors = protox::compile(files, ["."])?;
    // Ordered maps, because a resource's version is a hash of its encoding.
    tonic_prost_build::configure().btree_map(".").compile_fds(descriptors)?;
    Ok(())
}
