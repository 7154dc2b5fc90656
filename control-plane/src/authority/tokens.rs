//! Join tokens: which node is calling. Compared in constant time, never logged.

use std::sync::Arc;

use subtle::{Choice, ConstantTimeEq};
use tonic::metadata::MetadataMap;

use crate::index::Index;

/// The node that the bearer token belongs to. Every token is compared, so that time tells nothing about which matched.
pub fn authenticate(index: &Index, metadata: &MetadataMap) -> Option<Arc<str>> {
    let header = metadata.get("authorization")?.to_str().ok()?;
    let shown = header.strip_prefix("Bearer ")?.trim();
    let mut node = None;
    for token in index.join_tokens() {
        let equal: Choice = shown.as_bytes().ct_eq(token.token.as_bytes());
        if bool::from(equal) {
            node = Some(token.node.clone());
        }
    }
    node
}
