//! The cluster's addresses: of IPv4, of IPv6, or of both. Where both are, IPv4 comes first.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of which address families a cluster's nodes, pods and Services have addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Families {
    Ipv4,
    Ipv6,
    Dual,
}

impl Families {
    /// The cluster's own first: that of Services which say nothing, and of `status.podIP`.
    pub fn each(self) -> &'static [Family] {
        match self {
            Self::Ipv4 => &[Family::V4],
            Self::Ipv6 => &[Family::V6],
            Self::Dual => &[Family::V4, Family::V6],
        }
    }

    pub(crate) fn first(self) -> Family {
        self.each()[0]
    }

    /// One for each family, as Kubernetes' flags want them: with a comma between.
    pub(crate) fn listed(self, one: impl FnMut(Family) -> String) -> String {
        self.each().iter().copied().map(one).collect::<Vec<_>>().join(",")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// An address that ends with `last`, in hexadecimal digits with IPv6: of a network that is named by its IPv4 prefix.
    fn address(self, network: [u8; 3], last: u8) -> IpAddr {
        let [a, b, c] = network;
        match self {
            Self::V4 => Ipv4Addr::new(a, b, c, last).into(),
            Self::V6 => {
                // Digits that read as the decimal ones: fd00:172:30::11 is 172.30.0.11's neighbour.
                let digits = |byte: u8| u16::from_str_radix(&byte.to_string(), 16).unwrap_or_default();
                Ipv6Addr::new(0xfd00, digits(a), digits(b), digits(c), 0, 0, 0, digits(last)).into()
            }
        }
    }

    /// Where the API server listens, in the control plane's namespace.
    pub(crate) fn control(self) -> IpAddr {
        self.address([172, 30, 0], 1)
    }

    pub(crate) fn node(self, index: u16) -> IpAddr {
        self.address([172, 30, 0], 10 + index.to_be_bytes()[1])
    }

    /// Addresses of a node's pods.
    pub(crate) fn pods_of(self, index: u16) -> String {
        format!("{}/{}", self.address([10, 244, index.to_be_bytes()[1]], 0), self.link_bits())
    }

    /// Addresses of all nodes' pods.
    pub fn pods(self) -> &'static str {
        match self {
            Self::V4 => "10.244.0.0/16",
            Self::V6 => "fd00:10:244::/48",
        }
    }

    /// Virtual addresses of Services.
    pub(crate) fn services(self) -> &'static str {
        match self {
            Self::V4 => "10.96.0.0/16",
            Self::V6 => "fd00:10:96::/112",
        }
    }

    /// The first of them, which Kubernetes gives to the API server.
    pub(crate) fn api_service(self) -> IpAddr {
        self.address([10, 96, 0], 1)
    }

    pub(crate) fn dns(self) -> IpAddr {
        self.address([10, 96, 0], 10)
    }

    pub(crate) fn link_bits(self) -> u8 {
        match self {
            Self::V4 => 24,
            Self::V6 => 64,
        }
    }

    pub(crate) fn everywhere(self) -> &'static str {
        match self {
            Self::V4 => "0.0.0.0/0",
            Self::V6 => "::/0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_both_families_read_alike() {
        let of = |family: Family| {
            [family.control(), family.node(2), family.api_service(), family.dns()].map(|it| it.to_string())
        };
        assert_eq!(of(Family::V4), ["172.30.0.1", "172.30.0.12", "10.96.0.1", "10.96.0.10"]);
        assert_eq!(of(Family::V6), ["fd00:172:30::1", "fd00:172:30::12", "fd00:10:96::1", "fd00:10:96::10"]);
        assert_eq!(Families::Dual.listed(|it| it.pods_of(2)), "10.244.2.0/24,fd00:10:244:2::/64");
    }
}
