//! Builds the kernel programs and embeds them. Where `bpf-linker` or `rust-src` is missing it embeds an empty object,
//! so that `cargo check` and the host-side tests work everywhere; loading then fails with a clear message.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for watched in [
        "build.rs",
        "common/src",
        "programs/src",
        "programs/Cargo.toml",
        "programs/Cargo.lock",
        "programs/.cargo",
    ] {
        watch(&here.join(watched));
    }
    println!("cargo::rerun-if-env-changed=PATH");
    let object = out.join("weft.o");
    match missing_tool() {
        Some(tool) => {
            println!("cargo::warning=kernel programs not built: {tool} is missing; run make setup");
            fs::write(&object, []).expect("OUT_DIR can be written");
        }
        None => build(&here.join("programs"), &out, &object),
    }
}

/// Cargo runs this again when what was missing is there.
fn missing_tool() -> Option<&'static str> {
    let path = search_path();
    if !path.iter().any(|dir| dir.join("bpf-linker").is_file()) {
        path.iter().for_each(|dir| watch(&dir.join("bpf-linker")));
        return Some("bpf-linker");
    }
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let sysroot = Command::new(rustc).args(["--print", "sysroot"]).output().ok()?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    // The marker that `-Z build-std` itself looks for.
    let source = sysroot.join("lib/rustlib/src/rust/library/Cargo.lock");
    watch(&source);
    (!source.is_file()).then_some("rust-src")
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

/// `PATH`, then cargo's own directory of installed programs.
fn search_path() -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> =
        env::var_os("PATH").map(|path| env::split_paths(&path).collect()).unwrap_or_default();
    let home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    dirs.extend(home.map(|home| home.join("bin")));
    dirs
}

fn build(programs: &Path, out: &Path, object: &Path) {
    // <target>/<profile>/build/<package>/out → <target>/bpf: shared by all profiles, and never the directory that the
    // outer cargo has locked.
    let target_dir = out.ancestors().nth(4).unwrap_or(out).join("bpf");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo
        .current_dir(programs)
        .args(["build", "--release", "--locked", "-Z", "build-std=core", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("PATH", env::join_paths(search_path()).expect("PATH was split from a valid one"));
    // The outer build's flags, wrappers and profile are for another target.
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let outer = name_text.starts_with("CARGO_")
            && name_text != "CARGO_HOME"
            && !name_text.starts_with("CARGO_HTTP")
            && !name_text.starts_with("CARGO_NET")
            && !name_text.starts_with("CARGO_REGISTR")
            && !name_text.starts_with("CARGO_SOURCE")
            || name_text.starts_with("RUSTC") && name_text != "RUSTC_BOOTSTRAP"
            || ["RUSTFLAGS", "RUSTDOC", "TARGET", "HOST", "OPT_LEVEL", "DEBUG", "PROFILE", "OUT_DIR"]
                .contains(&name_text.as_ref());
        if outer {
            cargo.env_remove(&name);
        }
    }
    let status = cargo.status().expect("cargo can be started");
    assert!(status.success(), "the kernel programs do not build; see above");
    let built = target_dir.join(TARGET).join("release/weft-ebpf-programs");
    fs::copy(&built, object).expect("the build has left its object");
}
