//! Capturing what crosses the link between the nodes.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::process::{Place, signal, start};
use super::{Lab, cgroup, netns, network, wait};

const START_WAIT_MAX: Duration = Duration::from_secs(10);
const STOP_WAIT_MAX: Duration = Duration::from_secs(10);
/// Room for some 250 packets that tcpdump has not read yet, each of up to 64 KiB: by default it has room for 31, and on a machine with
/// other work forgets the rest.
const BUFFER_KIB: &str = "16384";
/// Where nobody listens: a connection attempt there marks the end of a capture.
const MARK_PORT: u16 = 9;

/// A running capture; [`Capture::stop`] gives the packets.
#[derive(Debug)]
pub struct Capture {
    file: PathBuf,
    group: PathBuf,
    underlay: String,
    node: IpAddr,
}

impl Lab {
    /// Captures what crosses the underlay to and from a node, with a filter in tcpdump's words.
    pub fn capture(&self, node: &str, filter: &str) -> Result<Capture> {
        let underlay = network::underlay_netns(self.name());
        let group = self.cgroup().join("tools").join(format!("capture-{node}"));
        let place = Place { netns: underlay, cgroup: group, files: Vec::new() };
        let reached = network::node_ip(network::node_index(node)?);
        Capture::start(place, node, reached.into(), &self.directory().join("captures"), filter)
    }
}

impl Capture {
    /// Captures what crosses a link of the namespace that the place is in. `reached` answers over that link.
    pub(crate) fn start(
        place: Place,
        link: &str,
        reached: IpAddr,
        directory: &Path,
        filter: &str,
    ) -> Result<Self> {
        fs::create_dir_all(directory)?;
        let file = directory.join(format!("{link}.pcap"));
        let log = directory.join(format!("{link}.log"));
        for old in [&file, &log] {
            let _ = fs::remove_file(old);
        }
        let mut command = Command::new("tcpdump");
        command.args(["-i", link, "-U", "-s", "0", "-B", BUFFER_KIB, "--immediate-mode", "-Z", "root", "-w"]);
        command.arg(&file).arg(format!("({filter}) or (tcp port {MARK_PORT})"));
        start(command, &place, &log)?;
        wait::until_true(START_WAIT_MAX, "tcpdump listens", || {
            fs::read_to_string(&log).is_ok_and(|l| l.contains("listening on"))
        })
        .with_context(|| super::mesh::tail(&log))?;
        Ok(Self { file, group: place.cgroup, underlay: place.netns, node: reached })
    }

    /// Ends the capture and reads it.
    pub fn stop(self) -> Result<Packets> {
        self.wait_for_mark()?;
        signal(&self.group, rustix::process::Signal::INT);
        cgroup::wait_empty(&self.group, STOP_WAIT_MAX)?;
        let mut packets = self.read()?;
        packets.segments.retain(|s| !s.is_mark());
        Ok(packets)
    }

    fn read(&self) -> Result<Packets> {
        Packets::parse(&fs::read(&self.file).with_context(|| self.file.display().to_string())?)
    }

    /// On a loaded machine tcpdump lags behind, and forgets what it has not read when it is ended. So a last packet is
    /// sent over the link, and waited for.
    fn wait_for_mark(&self) -> Result<()> {
        let to = SocketAddr::from((self.node, MARK_PORT));
        // Refused, as it should be: what counts is the packet.
        let _ = netns::inside(&self.underlay, || TcpStream::connect_timeout(&to, STOP_WAIT_MAX).map(drop))?;
        wait::until(STOP_WAIT_MAX, || {
            let seen = self.read()?.segments.iter().any(Segment::is_mark);
            seen.then_some(()).context("tcpdump did not see the packet that marks the end")
        })
    }
}

/// TCP segments of a capture.
#[derive(Debug, Default)]
pub struct Packets {
    pub segments: Vec<Segment>,
}

#[derive(Debug)]
pub struct Segment {
    pub source_port: u16,
    pub destination_port: u16,
    pub payload: Vec<u8>,
}

impl Segment {
    fn is_mark(&self) -> bool {
        [self.source_port, self.destination_port].contains(&MARK_PORT)
    }
}

const PCAP_HEADER_BYTES: usize = 24;
const RECORD_HEADER_BYTES: usize = 16;
const ETHERNET_BYTES: usize = 14;

impl Packets {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes.get(PCAP_HEADER_BYTES..).context("a capture without a header")?;
        let mut segments = Vec::new();
        while let Some((header, after)) = rest.split_at_checked(RECORD_HEADER_BYTES) {
            // Captured length; tcpdump writes in the machine's byte order.
            let length = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
            let Some((frame, next)) = after.split_at_checked(length) else { break };
            segments.extend(segment(frame));
            rest = next;
        }
        Ok(Self { segments })
    }

    /// Segments to or from a port.
    pub fn port(&self, port: u16) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |s| s.source_port == port || s.destination_port == port)
    }

    /// Segments whose payload is a TLS record: handshake (22) or application data (23), version 3.x.
    pub fn tls_records(&self, port: u16) -> usize {
        let is_record = |s: &&Segment| matches!(s.payload.get(..2), Some([20..=23, 3]));
        self.port(port).filter(is_record).count()
    }

    /// Whether a text crossed the link in the clear.
    pub fn contains(&self, text: &str) -> bool {
        let needle = text.as_bytes();
        self.segments.iter().any(|s| s.payload.windows(needle.len()).any(|w| w == needle))
    }

    pub fn payload_bytes(&self) -> usize {
        self.segments.iter().map(|s| s.payload.len()).sum()
    }
}

fn segment(frame: &[u8]) -> Option<Segment> {
    let kind = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let packet = &frame[ETHERNET_BYTES..];
    let (tcp, length) = match kind {
        0x0800 => {
            let header = usize::from(packet.first()? & 0x0f) * 4;
            let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
            (packet.get(header..)?, total.checked_sub(header)?)
        }
        0x86dd => (packet.get(40..)?, usize::from(u16::from_be_bytes([*packet.get(4)?, *packet.get(5)?]))),
        _ => return None,
    };
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    Some(Segment {
        source_port: u16::from_be_bytes([tcp[0], tcp[1]]),
        destination_port: u16::from_be_bytes([tcp[2], tcp[3]]),
        payload: tcp.get(offset..length.min(tcp.len()))?.to_vec(),
    })
}
