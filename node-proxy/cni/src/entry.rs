//! The plugin's own entry in a network configuration list: written by `weft-node`, read by the plugin.

use serde::{Deserialize, Serialize};

/// Name of the plugin, which is the name of its file.
pub const TYPE: &str = "weft-cni";
/// Where the agent listens, unless it is told otherwise.
pub const SOCKET: &str = "/run/weft/cni.sock";
/// Namespaces whose pods never wait for the agent: the cluster's own parts, and Weft's, which must start before anything.
pub const EXCLUDED_NAMESPACES: &str = "kube-system,weft-system";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default = "default_socket")]
    pub socket: String,
    #[serde(default = "default_excluded")]
    pub exclude_namespaces: Vec<String>,
}

fn default_socket() -> String {
    SOCKET.into()
}

fn default_excluded() -> Vec<String> {
    EXCLUDED_NAMESPACES.split(',').map(Into::into).collect()
}
