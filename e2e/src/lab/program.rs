//! Whether the programs that a lab's containers name are on this machine, asked before anything is made.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::Path;

use anyhow::{Result, bail};

use super::manifest::{Container, Manifests};

/// Debian's packages of programs that examples and tests run.
const PACKAGES: &[(&str, &str)] = &[
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("nginx", "nginx-light"),
    ("psql", "postgresql-client"),
    ("iperf3", "iperf3"),
    ("wrk", "wrk"),
    ("python3", "python3-minimal"),
    ("socat", "socat"),
];

/// Where a container's program is looked for: the binaries of this build, then as in the shell.
pub(crate) fn search_path(binaries: &Path) -> OsString {
    let mut path = binaries.as_os_str().to_owned();
    path.push(":");
    path.push(env::var_os("PATH").unwrap_or_default());
    path
}

/// An error for the first container whose program is not there.
pub(crate) fn check(manifests: &Manifests, binaries: &Path) -> Result<()> {
    let path = search_path(binaries);
    for pod in manifests.pods.values() {
        for container in &pod.spec.containers {
            let Some(program) = container.command.first().filter(|p| !is_there(p, container, &path)) else {
                continue;
            };
            let package = PACKAGES.iter().find(|(of, _)| of == program).map(|(_, package)| package);
            let way_out = package.map_or_else(
                || "a lab runs programs of this machine, not images".to_owned(),
                |package| format!("Debian's package {package} has it (apt-get install {package})"),
            );
            bail!("Pod {}: no program {program:?} for container {}: {way_out}", pod.key(), container.name);
        }
    }
    Ok(())
}

fn is_there(program: &str, container: &Container, path: &OsStr) -> bool {
    // Its own PATH, or relative to a directory that is not made yet: seen when it is started.
    if container.env.iter().any(|v| v.name == "PATH") || (program.contains('/') && !program.starts_with('/'))
    {
        return true;
    }
    // Joining an absolute path gives just that.
    env::split_paths(path).any(|directory| directory.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(command: &str) -> Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{nodeName: node1, containers: [{{name: c, command: [{command}]}}]}}\n"
        );
        let binaries = tempfile::tempdir().unwrap();
        std::fs::write(binaries.path().join("weft-echo"), "").unwrap();
        check(&Manifests::parse("a.yaml", &text, 1)?, binaries.path())
    }

    #[test]
    fn a_program_that_is_not_there_is_named_with_its_package() {
        for there in ["sh", "/bin/sh", "weft-echo"] {
            checked(there).unwrap();
        }
        for not_there in ["/bin/no-such-program", "no-such-program"] {
            let said = checked(not_there).unwrap_err().to_string();
            assert!(said.contains("Pod default/a: no program") && said.contains(not_there), "{said}");
        }
        assert!(PACKAGES.contains(&("redis-server", "redis-server")));
    }
}
