//! `deploy/oci-image.sh` makes images that a container runtime takes: digests, sizes, libraries, and the same bytes each time.

#![expect(clippy::unwrap_used, reason = "test code outside of a #[test] function")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/oci-image.sh");

fn script(arguments: &[&str]) -> Output {
    Command::new(SCRIPT).args(arguments).output().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// An image with a program that needs libraries, unpacked.
fn unpacked(at: &Path) -> PathBuf {
    let image = at.join("image.tar");
    let made = script(&[
        "--user",
        "65532:65532",
        "weft.local/sample:1.2",
        image.to_str().unwrap(),
        "/bin/sh",
        "/etc/hostname=/data/name",
    ]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let layout = at.join("layout");
    std::fs::create_dir(&layout).unwrap();
    run("tar", &["-xf", image.to_str().unwrap(), "-C", layout.to_str().unwrap()]);
    layout
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

/// What a descriptor means, having checked its digest and size.
fn blob(layout: &Path, descriptor: &Value) -> PathBuf {
    let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    let file = layout.join("blobs/sha256").join(digest);
    assert_eq!(file.metadata().unwrap().len(), descriptor["size"].as_u64().unwrap());
    assert!(run("sha256sum", &[file.to_str().unwrap()]).starts_with(digest), "{descriptor}");
    file
}

#[test]
fn every_digest_and_size_is_right_and_the_layer_holds_what_the_program_needs() {
    let directory = tempfile::tempdir().unwrap();
    let layout = unpacked(directory.path());
    assert_eq!(json(&layout.join("oci-layout"))["imageLayoutVersion"], "1.0.0");
    let index = json(&layout.join("index.json"));
    let named = &index["manifests"][0];
    assert_eq!(named["annotations"]["io.containerd.image.name"], "weft.local/sample:1.2");
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2");
    let manifest = json(&blob(&layout, named));
    let config = json(&blob(&layout, &manifest["config"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/sh");
    assert_eq!(config["config"]["User"], "65532:65532");
    let layer = &manifest["layers"][0];
    // Not compressed, so the digest of the layer is that of what it holds.
    assert_eq!(config["rootfs"]["diff_ids"][0], layer["digest"]);

    let content = run("tar", &["--utc", "-tvf", blob(&layout, layer).to_str().unwrap()]);
    let needed = run("ldd", &["/bin/sh"]);
    let libraries = needed.split_whitespace().filter(|word| word.starts_with('/'));
    for path in libraries.chain(["/usr/local/bin/sh", "/data/name", "/etc/passwd", "/tmp/"]) {
        assert!(content.lines().any(|line| line.ends_with(&format!(".{path}"))), "{path} in {content}");
    }
    for line in content.lines() {
        assert!(line.contains(" 0/0 ") && line.contains(" 1970-01-01 "), "{line}");
    }
}

#[test]
fn the_same_files_give_the_same_image() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [first, second] = directories.each_ref().map(|directory| {
        unpacked(directory.path());
        std::fs::read(directory.path().join("image.tar")).unwrap()
    });
    assert!(first == second, "{} and {} bytes differ", first.len(), second.len());
}

#[test]
fn what_cannot_be_packed_is_said_and_leaves_no_image() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image.tar");
    let path = image.to_str().unwrap();
    for (arguments, message) in [
        (vec!["weft.local/a:1", path], "REFERENCE IMAGE.tar FILE"),
        (vec!["--user"], "REFERENCE IMAGE.tar FILE"),
        (vec!["just-a-name", path, "/bin/sh"], "is not of the form"),
        (vec!["weft.local/a:1", path, "/does/not/exist"], "no file /does/not/exist"),
    ] {
        let made = script(&arguments);
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(!made.status.success() && said.contains(message), "{arguments:?}: {said}");
        assert!(!image.exists());
    }
}
