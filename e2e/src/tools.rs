//! Where things of this build are, and where `scripts/setup.sh` leaves what it builds for demo, tests and cluster.

use std::path::{Path, PathBuf};

/// `WEFT_CACHE`, or `weft` in the user's cache directory.
pub fn cache_directory() -> PathBuf {
    if let Some(cache) = std::env::var_os("WEFT_CACHE") {
        return cache.into();
    }
    let home = || std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("weft")
}

/// The repository, as it was when this was built: tests and `weft-cluster` run in it.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The directory of the running program; of a test, which is in `deps/`, the one above.
pub fn built_beside() -> PathBuf {
    let program = std::env::current_exe().unwrap_or_default();
    let directory = program.parent().map(Path::to_path_buf).unwrap_or_default();
    if directory.ends_with("deps") { directory.join("..") } else { directory }
}
