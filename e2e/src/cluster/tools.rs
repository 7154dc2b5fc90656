//! The binaries that a cluster runs. `scripts/setup.sh --cluster` makes them; nothing here does.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::tools::cache_directory;

const VERSIONS: &str = include_str!("../../cluster/versions.sh");

/// A version of `e2e/cluster/versions.sh`.
pub(crate) fn version(of: &str) -> &'static str {
    let mut lines = VERSIONS.lines().filter_map(|l| l.split_once('='));
    lines.find(|(name, _)| *name == of).map_or("", |(_, version)| version)
}

pub(crate) fn kubernetes() -> PathBuf {
    cache_directory().join(format!("kubernetes-{}", version("KUBERNETES_VERSION"))).join("bin")
}

/// etcd, containerd, CNI plugins, images: all that is not Kubernetes.
pub(crate) fn others() -> PathBuf {
    cache_directory().join("cluster-tools")
}

/// The CRDs of the Gateway API, as a kustomization.
pub(crate) fn gateway_api() -> PathBuf {
    others().join(format!("gateway-api-{}", version("GATEWAY_API_VERSION")))
}

pub(crate) fn coredns_image() -> PathBuf {
    others().join(format!("images/coredns-{}.tar", version("COREDNS_VERSION")))
}

/// Before anything is made: everything that a cluster needs is there.
pub(crate) fn check() -> Result<()> {
    let (kubernetes, others) = (kubernetes(), others());
    let needed = [
        kubernetes.join("kube-apiserver"),
        kubernetes.join("kubelet"),
        kubernetes.join("kubectl"),
        others.join("bin/etcd"),
        others.join("bin/containerd"),
        others.join("bin/runc"),
        others.join("bin/helm"),
        others.join("cni/bridge"),
        others.join("images/pause.tar"),
        gateway_api(),
        coredns_image(),
    ];
    let missing: Vec<String> =
        needed.iter().filter(|p| !p.exists()).map(|p| p.display().to_string()).collect();
    if !missing.is_empty() {
        bail!("missing: {}; `scripts/setup.sh --cluster` makes them", missing.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_that_is_asked_for_is_written_down() {
        for name in ["KUBERNETES_VERSION", "COREDNS_VERSION", "GATEWAY_API_VERSION"] {
            assert_eq!(version(name).split('.').count(), 3, "{name}");
        }
    }
}
