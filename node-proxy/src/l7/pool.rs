//! Open HTTP connections towards destinations, kept for reuse; never shared between pods.

/// The pools of every local pod.
#[derive(Default)]
pub struct Upstreams {
    _private: (),
}
