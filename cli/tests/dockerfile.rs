//! `deploy/Dockerfile` is built by hand (docs/building.md): it wants a container engine. What it repeats of other files is compared here.

#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

use std::path::Path;

fn repository(file: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)).unwrap()
}

/// What stands in `text` between the first `before` and the next `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("no {before:?} in {text}"));
    rest.split_once(after).unwrap_or_else(|| panic!("no {after:?} after {before:?} in {text}")).0
}

#[test]
fn the_compiler_and_the_linker_are_those_of_a_build_without_a_container() {
    let dockerfile = repository("deploy/Dockerfile");
    let toolchain = repository("rust-toolchain.toml");
    assert_eq!(between(&dockerfile, "FROM rust:", "-"), between(&toolchain, "channel = \"", "\""));
    let setup = repository("scripts/setup.sh");
    assert_eq!(
        between(&dockerfile, "cargo install bpf-linker --version ", " "),
        between(&setup, "BPF_LINKER_VERSION=", " ")
    );
}

#[test]
fn the_images_hold_and_run_the_same_as_those_made_without_a_container_engine() {
    let dockerfile = repository("deploy/Dockerfile");
    let images = repository("deploy/images.sh");
    for image in ["weft-control", "weft-node", "weft-echo"] {
        let stage =
            dockerfile.split("\nFROM ").find(|stage| stage.contains(&format!("AS {image}\n"))).unwrap();
        assert_eq!(between(stage, "ENTRYPOINT [\"", "\"]"), format!("/usr/local/bin/{image}"));
        let line = images.lines().find(|line| line.contains(&format!("/{image}:$tag"))).unwrap();
        assert!(line.contains(&format!("\"$binaries/{image}\"")), "{line}");
        let user = stage.lines().find_map(|line| line.strip_prefix("USER "));
        let packed = line.split_once("--user ").map(|(_, rest)| between(rest, "", " "));
        assert_eq!(user, packed, "{image}");
    }
    let plugin = "weft-cni=/opt/weft/bin/weft-cni";
    assert!(dockerfile.contains(plugin) && images.contains(plugin));
}
