//! Where `scripts/setup.sh` leaves what it builds for demo, tests and cluster.

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
