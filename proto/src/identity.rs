//! Who a workload is: trust domain, SPIFFE ID, names of Kubernetes objects and pods.
//!
//! Parsing is strict, and printing gives back the text that was parsed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// Longest SPIFFE ID, in bytes (SPIFFE-ID specification, section 2.4).
pub const SPIFFE_ID_BYTES_MAX: usize = 2048;
/// Longest trust domain name, in bytes (SPIFFE-ID specification, section 2.1).
pub const TRUST_DOMAIN_BYTES_MAX: usize = 255;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("trust domain {0:?} is not 1 to 255 characters of a-z, 0-9, '.', '-' and '_'")]
    TrustDomain(String),
    #[error("{0:?} is not of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>")]
    SpiffeId(String),
    #[error("{0:?} is not of the form spiffe://<trust domain>/weft/node/<node>")]
    NodeId(String),
    #[error("{0:?} is not of the form namespace/name")]
    NamespacedName(String),
    #[error("{0:?} is not a name of a Kubernetes object")]
    ObjectName(String),
}

/// The authority part of a SPIFFE ID, such as `cluster.local`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > TRUST_DOMAIN_BYTES_MAX || !text.bytes().all(valid) {
            return Err(IdentityError::TrustDomain(text.chars().take(64).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name of a namespace, Service, pod or ServiceAccount: a DNS subdomain of at most 253 characters.
fn object_name(text: &str) -> bool {
    let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-');
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.len() <= 253
        && text.bytes().all(valid)
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
}

/// `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`: the identity of a workload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    namespace: Arc<str>,
    service_account: Arc<str>,
}

impl SpiffeId {
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        for name in [namespace, service_account] {
            if !object_name(name) {
                return Err(IdentityError::ObjectName(name.chars().take(64).collect()));
            }
        }
        Ok(Self { trust_domain, namespace: namespace.into(), service_account: service_account.into() })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || IdentityError::SpiffeId(text.chars().take(128).collect());
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(bad());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let mut parts = rest.split('/');
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(domain), Some("ns"), Some(namespace), Some("sa"), Some(account), None) => {
                Self::new(domain.parse()?, namespace, account)
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

/// `spiffe://<trust domain>/weft/node/<node>`: the identity of a node towards the control plane. No workload's, and no
/// workload's is a node's: the two forms have no text in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    trust_domain: TrustDomain,
    node: Arc<str>,
}

impl NodeId {
    pub fn new(trust_domain: TrustDomain, node: &str) -> Result<Self, IdentityError> {
        if !object_name(node) {
            return Err(IdentityError::ObjectName(node.chars().take(64).collect()));
        }
        Ok(Self { trust_domain, node: node.into() })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }
    pub fn node(&self) -> &Arc<str> {
        &self.node
    }
}

impl FromStr for NodeId {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || IdentityError::NodeId(text.chars().take(128).collect());
        if text.len() > SPIFFE_ID_BYTES_MAX {
            return Err(bad());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(bad)?;
        let (domain, path) = rest.split_once('/').ok_or_else(bad)?;
        let node = path.strip_prefix("weft/node/").ok_or_else(bad)?;
        Self::new(domain.parse()?, node)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/weft/node/{}", self.trust_domain, self.node)
    }
}

/// `namespace/name` of a Kubernetes object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl NamespacedName {
    pub fn new(namespace: &str, name: &str) -> Result<Self, IdentityError> {
        for part in [namespace, name] {
            if !object_name(part) {
                return Err(IdentityError::ObjectName(part.chars().take(64).collect()));
            }
        }
        Ok(Self { namespace: namespace.into(), name: name.into() })
    }
}

impl FromStr for NamespacedName {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text
            .split_once('/')
            .ok_or_else(|| IdentityError::NamespacedName(text.chars().take(64).collect()))?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl fmt::Debug for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A pod's UID: 1 to 64 characters of a UUID or of a static pod's hash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PodUid {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty()
            || text.len() > 64
            || !text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        {
            return Err(IdentityError::ObjectName(text.chars().take(64).collect()));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_node_is_no_workload_and_a_workload_no_node() {
        let text = "spiffe://cluster.local/weft/node/node-1.example";
        let id: NodeId = text.parse().unwrap();
        assert_eq!((&**id.node(), id.to_string().as_str()), ("node-1.example", text));
        assert!(text.parse::<SpiffeId>().is_err());
        for bad in [
            "",
            "spiffe://cluster.local/weft/node/",
            "spiffe://cluster.local/weft/node/a/b",
            "spiffe://cluster.local/weft/node/A",
            "spiffe://cluster.local/weft/node/..",
            "spiffe://cluster.local/weft/nodes/a",
            "spiffe://cluster.local/ns/weft/sa/node",
            "spiffe:///weft/node/a",
            "spiffe://cluster.local:1/weft/node/a",
            "https://cluster.local/weft/node/a",
        ] {
            assert!(bad.parse::<NodeId>().is_err(), "{bad}");
        }
    }

    proptest! {
        /// Also near misses: pieces of what is valid, put together at random.
        #[test]
        fn what_parses_prints_as_it_was_and_nothing_panics(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("spiffe://".to_owned()), Just("/".to_owned()), Just("weft/node/".to_owned()), Just("ns/".to_owned()),
                    Just("/sa/".to_owned()), Just("cluster.local".to_owned()), Just("a-1".to_owned()), any::<String>(),
                ],
                0..9,
            )
        ) {
            let text = pieces.concat();
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.to_string(), text.as_str());
                prop_assert!(text.parse::<NodeId>().is_err());
            }
            if let Ok(id) = text.parse::<NodeId>() {
                prop_assert_eq!(id.to_string(), text.as_str());
            }
            if let Ok(name) = text.parse::<NamespacedName>() {
                prop_assert_eq!(name.to_string(), text.as_str());
            }
            let _ = (text.parse::<PodUid>(), text.parse::<TrustDomain>());
        }
    }

    #[test]
    fn a_spiffe_id_prints_what_was_parsed() {
        let text = "spiffe://cluster.local/ns/shop/sa/frontend";
        let id: SpiffeId = text.parse().unwrap();
        assert_eq!((id.namespace(), id.service_account()), ("shop", "frontend"));
        assert_eq!(id.to_string(), text);
    }

    #[test]
    fn what_is_not_a_workload_identity_is_refused() {
        for bad in [
            "",
            "spiffe://",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://cluster.local",
            "spiffe://cluster.local/",
            "spiffe://cluster.local/ns/a/sa/b/",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe://CLUSTER/ns/a/sa/b",
            "spiffe://cluster.local:80/ns/a/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a%2f/sa/b",
            "spiffe://cluster.local/ns/a/sa/b?q",
            "SPIFFE://cluster.local/ns/a/sa/b",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
    }
}
