//! What the decisions promise, as tables.

extern crate std;

use std::net::IpAddr;

use super::*;
use crate::abi::{LEG_REDIRECT, PodConfig, address_bytes, address_from_bytes};

fn bytes(text: &str) -> Address {
    match text.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4_mapped(u32::from_ne_bytes(v4.octets())),
        IpAddr::V6(v6) => address_from_bytes(v6.octets()),
    }
}

fn pod() -> PodConfig {
    PodConfig {
        outbound_v4: bytes("10.0.0.5"),
        outbound_v6: bytes("fd00::5"),
        outbound_port: 15001,
        flags: 0,
        pad: [0; 4],
    }
}

fn decide(destination: &str, protocol: u32, by_proxy: bool, port: bool, cidr: bool) -> Connect {
    let destination = SocketAddress::new(bytes(destination), 80);
    connect(&pod(), protocol, by_proxy, &destination, || port, || cidr)
}

#[test]
fn only_tcp_to_other_addresses_is_redirected_and_within_its_family() {
    let redirect = |to| Connect::Redirect(SocketAddress::new(bytes(to), 15001));
    let pass = Connect::Pass;
    for (destination, expected) in [
        ("10.0.0.6", redirect("10.0.0.5")),
        ("fd00::6", redirect("fd00::5")),
        ("::ffff:10.0.0.6", redirect("10.0.0.5")),
        ("169.254.169.254", redirect("10.0.0.5")),
        ("127.0.0.1", pass(Outcome::ConnectLocal)),
        ("127.9.9.9", pass(Outcome::ConnectLocal)),
        ("::ffff:127.0.0.1", pass(Outcome::ConnectLocal)),
        ("::1", pass(Outcome::ConnectLocal)),
        ("0.0.0.0", pass(Outcome::ConnectLocal)),
        ("::", pass(Outcome::ConnectLocal)),
        ("10.0.0.5", pass(Outcome::ConnectLocal)),
        ("fd00::5", pass(Outcome::ConnectLocal)),
        ("fe80::1", pass(Outcome::ConnectLocal)),
        ("fec0::1", redirect("fd00::5")),
    ] {
        assert_eq!(decide(destination, IPPROTO_TCP, false, false, false), expected, "{destination}");
    }
}

#[test]
fn the_proxy_udp_and_exclusions_pass() {
    for (protocol, proxy, port, cidr, expected) in [
        (IPPROTO_TCP, true, true, true, Outcome::ConnectProxy),
        (17, false, true, true, Outcome::ConnectNotTcp),
        (132, false, false, false, Outcome::ConnectNotTcp),
        (IPPROTO_TCP, false, true, true, Outcome::ConnectExcludedPort),
        (IPPROTO_TCP, false, false, true, Outcome::ConnectExcludedCidr),
    ] {
        assert_eq!(decide("10.0.0.6", protocol, proxy, port, cidr), Connect::Pass(expected));
    }
}

#[test]
fn inbound_is_steered_unless_local_or_excluded() {
    let foreign = Lookup::Drop(Outcome::LookupForeignLoopback);
    for (protocol, local, remote, excluded, expected) in [
        (IPPROTO_TCP, "10.0.0.5", "10.0.0.6", false, Lookup::Steer),
        (IPPROTO_TCP, "fd00::5", "fd00::6", false, Lookup::Steer),
        (IPPROTO_TCP, "10.0.0.5", "10.0.0.6", true, Lookup::Pass(Outcome::LookupExcluded)),
        (IPPROTO_TCP, "10.0.0.5", "10.0.0.5", false, Lookup::Pass(Outcome::LookupLocal)),
        (IPPROTO_TCP, "127.0.0.1", "127.0.0.2", false, Lookup::Pass(Outcome::LookupLocal)),
        (IPPROTO_TCP, "::1", "::1", false, Lookup::Pass(Outcome::LookupLocal)),
        // The proxy towards an application; nearly the proxy.
        (IPPROTO_TCP, "10.0.0.5", "127.0.0.1", true, Lookup::Pass(Outcome::LookupLocal)),
        (IPPROTO_TCP, "fd00::5", "::1", true, Lookup::Pass(Outcome::LookupLocal)),
        (IPPROTO_TCP, "10.0.0.5", "127.0.0.2", false, Lookup::Steer),
        (IPPROTO_TCP, "fd00::5", "127.0.0.1", false, Lookup::Steer),
        (IPPROTO_TCP, "10.0.0.5", "::1", false, Lookup::Steer),
        // To loopback: from inside only.
        (IPPROTO_TCP, "127.0.0.1", "10.0.0.5", false, Lookup::Pass(Outcome::LookupLocal)),
        (IPPROTO_TCP, "127.0.0.1", "10.0.0.6", true, foreign),
        (IPPROTO_TCP, "::1", "fd00::6", true, foreign),
        (17, "10.0.0.5", "10.0.0.6", false, Lookup::Pass(Outcome::LookupNotTcp)),
    ] {
        let remote_is_own = || in_pod(&pod(), &bytes(remote));
        let decided = lookup(protocol, &bytes(local), &bytes(remote), remote_is_own, || excluded, || false);
        assert_eq!(decided, expected, "{remote} -> {local}");
        // A probe that was filed changes only what would have been steered.
        let decided = lookup(protocol, &bytes(local), &bytes(remote), remote_is_own, || excluded, || true);
        let expected = if expected == Lookup::Steer { Lookup::Pass(Outcome::LookupProbe) } else { expected };
        assert_eq!(decided, expected, "probe {remote} -> {local}");
    }
}

#[test]
fn addresses_survive_the_kernels_words() {
    for text in ["::ffff:10.1.2.3", "2001:db8::1"] {
        let address = bytes(text);
        assert_eq!(address_from_bytes(address_bytes(address)), address);
        assert_eq!(normalise(FAMILY_V6, 0, address), address);
    }
    let v4 = u32::from_ne_bytes([10, 1, 2, 3]);
    assert_eq!(normalise(FAMILY_V4, v4, [0; 4]), bytes("10.1.2.3"));
    assert_eq!(bytes("10.1.2.3"), bytes("::ffff:10.1.2.3"));
}

#[test]
fn a_prefix_key_begins_with_the_cookie() {
    let key = cidr_key(0x0102_0304_0506_0708, bytes("10.0.0.1"));
    assert_eq!(key.netns_cookie_be.map(u32::from_be), [0x0102_0304, 0x0506_0708]);
}

#[test]
fn a_v6_name_is_not_shown_to_a_v4_socket() {
    let (v4, v6) = (SocketAddress::new(bytes("10.0.0.1"), 1), SocketAddress::new(bytes("fd00::1"), 1));
    let (own, other) = (bytes("10.0.0.5"), SocketAddress::new(bytes("10.0.0.6"), 9));
    assert_eq!(peer_name(FAMILY_V4, Some(v4), &own, &other), Some(v4));
    assert_eq!(peer_name(FAMILY_V6, Some(v4), &own, &other), Some(v4));
    assert_eq!(peer_name(FAMILY_V6, Some(v6), &own, &other), Some(v6));
    assert_eq!(peer_name(FAMILY_V4, Some(v6), &own, &other), None);
    assert_eq!(peer_name(FAMILY_V4, None, &own, &other), None);
}

#[test]
fn an_application_never_takes_the_proxy_for_a_loopback_client() {
    for (family, local, peer, shown) in [
        (FAMILY_V4, "10.0.0.5", "127.0.0.1", Some("10.0.0.5")),
        (FAMILY_V6, "10.0.0.5", "127.0.0.1", Some("10.0.0.5")),
        (FAMILY_V6, "fd00::5", "::1", Some("fd00::5")),
        (FAMILY_V4, "127.0.0.1", "127.0.0.1", None),
        (FAMILY_V6, "::1", "::1", None),
        (FAMILY_V4, "10.0.0.5", "10.0.0.6", None),
    ] {
        let peer = SocketAddress::new(bytes(peer), 9);
        let shown = shown.map(|address| SocketAddress::new(bytes(address), 9));
        assert_eq!(peer_name(family, None, &bytes(local), &peer), shown, "{local} {peer:?}");
    }
}

#[test]
fn towards_an_application_the_path_never_changes_and_the_unread_are_bounded() {
    let leg = |path| Leg { path, redirected_bytes: 1 << 40, ..Leg::new(false, 1) };
    for (path, peer_inserted, unread, expected) in [
        (LEG_UNDECIDED, true, Some(0), Way::Redirect),
        (LEG_UNDECIDED, false, Some(0), Way::Stack),
        (LEG_UNDECIDED, true, None, Way::Stack),
        (LEG_REDIRECT, true, Some(UNREAD_BYTES_BREAK - 1), Way::Redirect),
        (LEG_REDIRECT, true, Some(UNREAD_BYTES_BREAK), Way::Break),
        (LEG_REDIRECT, false, None, Way::Redirect),
        (LEG_STACK, true, Some(0), Way::Stack),
    ] {
        assert_eq!(way(&leg(path), || peer_inserted, || unread), expected, "{path} {unread:?}");
    }
}

#[test]
fn towards_the_proxy_the_path_changes_once_and_not_before_the_proxy_expects_it() {
    let leg = |path, redirected_bytes| Leg { path, redirected_bytes, ..Leg::new(true, 1) };
    for (leg, peer_inserted, unread, expected) in [
        (leg(LEG_UNDECIDED, 0), true, Some(0), Way::Redirect),
        (leg(LEG_UNDECIDED, 0), false, Some(0), Way::Stack),
        (leg(LEG_REDIRECT, 1 << 40), true, Some(0), Way::Redirect),
        (leg(LEG_REDIRECT, 1 << 40), true, Some(UNREAD_BYTES_MAX - 1), Way::Redirect),
        (leg(LEG_REDIRECT, 1 << 40), true, Some(UNREAD_BYTES_MAX), Way::Stack),
        // A kernel that does not tell: after so many bytes at the latest.
        (leg(LEG_REDIRECT, UNREAD_BYTES_MAX - 1), true, None, Way::Redirect),
        (leg(LEG_REDIRECT, UNREAD_BYTES_MAX), true, None, Way::Stack),
        (leg(LEG_STACK, 0), true, Some(0), Way::Stack),
    ] {
        assert_eq!(way(&leg, || peer_inserted, || unread), expected, "{leg:?} {unread:?}");
    }
}
