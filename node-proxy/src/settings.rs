//! Flags and environment of `weft-node`: documented, bounded, all mistakes reported at once. No test switches.

/// The node proxy's settings.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node in the cluster.
    pub node_name: String,
}
