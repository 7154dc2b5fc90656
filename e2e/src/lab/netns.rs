//! Network namespaces by name, as `ip netns` keeps them, and running a closure inside one.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::command::run;

const DIRECTORY: &str = "/run/netns";

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

pub(crate) fn add(name: &str) -> Result<()> {
    run("ip", &["netns", "add", name])?;
    run("ip", &["-n", name, "link", "set", "lo", "up"])?;
    Ok(())
}

pub(crate) fn remove(name: &str) -> Result<()> {
    match run("ip", &["netns", "delete", name]) {
        // Gone is what was wanted, whoever removed it.
        Err(_) if !path(name).exists() => Ok(()),
        other => other.map(drop),
    }
}

/// Names of all namespaces that begin with `prefix`.
pub(crate) fn with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else { return Vec::new() };
    let names = entries.filter_map(|e| e.ok()?.file_name().into_string().ok());
    names.filter(|n| n.starts_with(prefix)).collect()
}

/// Runs `work` on a thread of its own that lives inside the namespace, so that no other thread ever moves.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path(name)).with_context(|| format!("network namespace {name}"))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok::<_, rustix::io::Errno>(work())
        });
        let result = thread.join().map_err(|_| anyhow!("the work inside namespace {name} panicked"))?;
        result.with_context(|| format!("entering network namespace {name}"))
    })
}

/// Writes kernel settings of one namespace (`net/ipv4/ip_forward` and the like).
pub(crate) fn sysctl(name: &str, settings: &[(&str, &str)]) -> Result<()> {
    inside(name, || {
        for (key, value) in settings {
            fs::write(format!("/proc/sys/{key}"), value).with_context(|| format!("sysctl {key}={value}"))?;
        }
        Ok(())
    })?
}
