//! Any bytes as a packet of a tunnel port: what is read of its header is written to bytes that read the same, and what is within, whole or
//! not, is looked at as a port and the softpath do.
//!
//! The input is a byte with the protocol, one with the outer type of service, and the packet from the tunnel's header on.
#![no_main]

use flowlift_flow::Metadata;
use flowlift_flow::text::{key_text, parse_key};
use flowlift_port::offload::finish;
use flowlift_port::tunnel::gre::{self, GreTunnel, Moment};
use flowlift_port::tunnel::header::{self, UdpTunnel};
use flowlift_port::tunnel::inner::{decapsulate_ecn, ip_end, left_to_do, min_len, source_port};
use flowlift_port::tunnel::{ETHERNET, HeaderError, TunnelInfo};
use flowlift_softpath::Packet;
use flowlift_softpath::extract::{KeyBuf, extract_packet};
use flowlift_softpath::packet::PacketType;
use libfuzzer_sys::fuzz_target;
use std::num::NonZeroUsize;

/// Largest IP packet within, in bytes.
const MTU: usize = 1450;
const IN_PORT: Metadata = Metadata { in_port: 1, recirc_id: 0, dp_hash: 0, skb_priority: 0, skb_mark: 0 };

#[derive(Clone, Copy)]
enum Protocol {
    Udp(UdpTunnel),
    Gre(GreTunnel),
}

const PROTOCOLS: [Protocol; 7] = [
    Protocol::Udp(UdpTunnel::Vxlan { gbp: false }),
    Protocol::Udp(UdpTunnel::Vxlan { gbp: true }),
    Protocol::Udp(UdpTunnel::VxlanGpe),
    Protocol::Udp(UdpTunnel::Geneve),
    Protocol::Gre(GreTunnel::Ethernet),
    Protocol::Gre(GreTunnel::Any),
    Protocol::Gre(GreTunnel::Erspan),
];

impl Protocol {
    fn decode(self, packet: &[u8], info: &mut TunnelInfo) -> Result<usize, HeaderError> {
        match self {
            Self::Udp(udp) => header::decode(udp, packet, info),
            Self::Gre(gre) => gre::decode(gre, packet, info),
        }
    }

    /// A whole packet with `frame` in it.
    fn encode(self, info: &TunnelInfo, frame: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let (mut udp, mut gre) = ([0; header::MAX_LEN], [0; gre::MAX_LEN]);
        let header = match self {
            Self::Udp(kind) => {
                let len = header::encode(kind, info, &mut udp)?;
                &udp[..len]
            }
            Self::Gre(kind) => {
                let len = gre::encode(kind, info, Moment::default(), frame, &mut gre)?;
                &gre[..len]
            }
        };
        Ok([header, frame].concat())
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&[protocol, tos], packet)) = data.split_first_chunk() else { return };
    let protocol = PROTOCOLS[usize::from(protocol) % PROTOCOLS.len()];
    let mut info = TunnelInfo::default();
    let Ok(len) = protocol.decode(packet, &mut info) else { return };
    let within = packet.get(len..).unwrap_or_else(|| panic!("{len} bytes of a header in {}", packet.len()));

    let written = protocol.encode(&info, within).unwrap_or_else(|e| panic!("{info:?}: {e}"));
    let mut again = TunnelInfo::default();
    let read = protocol.decode(&written, &mut again);
    assert_eq!((read, &again), (Ok(written.len() - within.len()), &info));

    if within.len() < min_len(info.protocol) {
        return;
    }
    assert!((32_768..61_000).contains(&source_port(within, info.protocol)));
    let mut within = within.to_vec();
    if !decapsulate_ecn(tos, &mut within, info.protocol) {
        return;
    }
    for datagrams_of in [None, NonZeroUsize::new(usize::from(tos) + 1)] {
        let Some(offload) = left_to_do(&within, info.protocol, MTU, datagrams_of) else { continue };
        let mut whole = 0;
        let finished = finish(&within, &offload, &mut Vec::new(), &mut |frame| whole += frame.len());
        assert!(finished.is_err() || whole >= within.len(), "{whole} bytes of {}", within.len());
    }
    let _ = ip_end(&within, info.protocol);
    let mut packet = Packet::new();
    packet.fill(&within, IN_PORT);
    if info.protocol != ETHERNET {
        packet.packet_type = PacketType::bare(info.protocol);
    }
    let mut key = KeyBuf::new();
    extract_packet(&packet, &mut key);
    assert_eq!(key.key().packet_type.get(), packet.packet_type.0);
    let text = key_text(key.key()).to_string();
    if let Err(error) = parse_key(&text) {
        panic!("the key printed as {text}: {error}");
    }
});
