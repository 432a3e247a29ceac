//! The headers between UDP and the frame: VXLAN's, VXLAN-GPE's and Geneve's.

use super::{ETHERNET, Gbp, Options, TunnelInfo};

/// Longest header: Geneve with all options.
pub const MAX_LEN: usize = 8 + super::OPTIONS_MAX;

/// A protocol over UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UdpTunnel {
    /// VXLAN.
    Vxlan {
        /// With group policy, or without.
        gbp: bool,
    },
    /// VXLAN-GPE, which says what is within (draft-ietf-nvo3-vxlan-gpe, section 3).
    VxlanGpe,
    /// Geneve.
    Geneve,
}
/// VXLAN: the VNI is valid.
const VXLAN_I: u8 = 0x08;
/// VXLAN: group policy is present.
const VXLAN_G: u8 = 0x80;
/// VXLAN-GPE: the next protocol is given. OAM, another version and the bits that are reserved are not known here, nor to Linux.
const VXLAN_P: u8 = 0x04;
/// VXLAN-GPE: next protocols, each with the Ethernet type of the same (`TUN_P_*` of Linux).
const NEXT_PROTOCOLS: [(u8, u16); 5] = [(1, 0x0800), (2, 0x86dd), (3, ETHERNET), (4, 0x894f), (5, 0x8847)];
/// The group policy's own flags.
const GBP_FLAGS: u8 = 0x48;
const GENEVE_OAM: u8 = 0x80;
const GENEVE_CRITICAL: u8 = 0x40;

/// A packet that is not of the tunnel's protocol, or that no such tunnel carries; Linux drops it as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It ends within the header.
    #[error("the packet ends within its tunnel header")]
    CutOff,
    /// VXLAN flags or reserved bits that this port does not know, or no VNI.
    #[error("VXLAN flags or reserved bits that are not known here")]
    Vxlan,
    /// Another version of Geneve than 0.
    #[error("Geneve version {0}")]
    Version(u8),
    /// Something is within that such a tunnel does not carry.
    #[error("protocol {0:#06x} within, which this tunnel does not carry")]
    Protocol(u16),
    /// GRE with routing, or a version other than 0.
    #[error("GRE flags {0:#06x}")]
    Gre(u16),
    /// GRE with a wrong checksum.
    #[error("a wrong GRE checksum")]
    Checksum,
    /// ERSPAN of a version other than 1 and 2, or without a sequence number.
    #[error("ERSPAN that is neither version 1 nor 2")]
    Erspan,
}

/// Writes the header for `info` to the front of `out`; gives its length.
///
/// # Errors
/// [`HeaderError::Protocol`].
pub fn encode(kind: UdpTunnel, info: &TunnelInfo, out: &mut [u8; MAX_LEN]) -> Result<usize, HeaderError> {
    let next_protocol = NEXT_PROTOCOLS.iter().find(|(_, protocol)| *protocol == info.protocol);
    let carried =
        if kind == UdpTunnel::VxlanGpe { next_protocol.is_some() } else { info.protocol == ETHERNET };
    if !carried {
        return Err(HeaderError::Protocol(info.protocol));
    }
    let vni = info.id.unwrap_or(0).to_be_bytes();
    let options = info.options.bytes();
    match kind {
        UdpTunnel::Vxlan { gbp } => {
            let policy = info.gbp.filter(|_| gbp);
            let [hi, lo] = policy.map_or(0, |p| p.id).to_be_bytes();
            let first = VXLAN_I | if policy.is_some() { VXLAN_G } else { 0 };
            let flags = policy.map_or(0, |p| p.flags & GBP_FLAGS);
            out[..8].copy_from_slice(&[first, flags, hi, lo, vni[1], vni[2], vni[3], 0]);
            Ok(8)
        }
        UdpTunnel::VxlanGpe => {
            let next = next_protocol.map_or(0, |(next, _)| *next);
            out[..8].copy_from_slice(&[VXLAN_I | VXLAN_P, 0, 0, next, vni[1], vni[2], vni[3], 0]);
            Ok(8)
        }
        UdpTunnel::Geneve => {
            let oam = if info.oam { GENEVE_OAM } else { 0 };
            let critical = if has_critical(options) { GENEVE_CRITICAL } else { 0 };
            let words = (options.len() / 4) as u8;
            let [a, b] = ETHERNET.to_be_bytes();
            out[..8].copy_from_slice(&[words, oam | critical, a, b, vni[1], vni[2], vni[3], 0]);
            out[8..8 + options.len()].copy_from_slice(options);
            Ok(8 + options.len())
        }
    }
}

/// Any option with the critical bit in its type.
fn has_critical(mut options: &[u8]) -> bool {
    while let Some(&[_, _, kind, len]) = options.first_chunk() {
        if kind & 0x80 != 0 {
            return true;
        }
        options = options.get(4 + usize::from(len & 0x1f) * 4..).unwrap_or_default();
    }
    false
}

/// Reads the header at the front of `packet` into `info`; gives its length.
///
/// # Errors
/// See [`HeaderError`].
pub fn decode(kind: UdpTunnel, packet: &[u8], info: &mut TunnelInfo) -> Result<usize, HeaderError> {
    let head: &[u8; 8] = packet.first_chunk().ok_or(HeaderError::CutOff)?;
    let vni = u32::from_be_bytes([0, head[4], head[5], head[6]]);
    (info.id, info.gbp, info.erspan, info.oam) = (Some(vni), None, None, false);
    info.options.clear();
    info.protocol = ETHERNET;
    match kind {
        UdpTunnel::Vxlan { gbp } => {
            let id = u16::from_be_bytes([head[2], head[3]]);
            match head[0] {
                VXLAN_I if head[1..4] == [0; 3] => {}
                first if first == VXLAN_I | VXLAN_G && gbp => {
                    info.gbp = Some(Gbp { id, flags: head[1] & GBP_FLAGS });
                }
                _ => return Err(HeaderError::Vxlan),
            }
            if head[7] != 0 {
                return Err(HeaderError::Vxlan);
            }
            Ok(8)
        }
        UdpTunnel::VxlanGpe => {
            let &[first, 0, 0, next, _, _, _, 0] = head else { return Err(HeaderError::Vxlan) };
            if first != VXLAN_I | VXLAN_P {
                return Err(HeaderError::Vxlan);
            }
            let found = NEXT_PROTOCOLS.iter().find(|(number, _)| *number == next);
            info.protocol = found.ok_or(HeaderError::Protocol(next.into()))?.1;
            Ok(8)
        }
        UdpTunnel::Geneve => {
            let version = head[0] >> 6;
            if version != 0 {
                return Err(HeaderError::Version(version));
            }
            let protocol = u16::from_be_bytes([head[2], head[3]]);
            if protocol != ETHERNET {
                return Err(HeaderError::Protocol(protocol));
            }
            let end = 8 + usize::from(head[0] & 0x3f) * 4;
            let options = packet.get(8..end).and_then(Options::new).ok_or(HeaderError::CutOff)?;
            info.oam = head[1] & GENEVE_OAM != 0;
            info.options = options;
            Ok(end)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(kind: UdpTunnel, info: &TunnelInfo) -> Vec<u8> {
        let mut out = [0xee; MAX_LEN];
        let len = encode(kind, info, &mut out).unwrap();
        out[..len].to_vec()
    }

    #[test]
    fn headers_as_in_their_documents() {
        let plain = TunnelInfo { id: Some(0x12_3456), ..TunnelInfo::default() };
        // RFC 7348, section 5.
        assert_eq!(encoded(UdpTunnel::Vxlan { gbp: false }, &plain), [8, 0, 0, 0, 0x12, 0x34, 0x56, 0]);
        let policy = TunnelInfo { gbp: Some(Gbp { id: 0xabcd, flags: 0x48 }), ..plain.clone() };
        let bytes = [0x88, 0x48, 0xab, 0xcd, 0x12, 0x34, 0x56, 0];
        assert_eq!(encoded(UdpTunnel::Vxlan { gbp: true }, &policy), bytes);
        assert_eq!(
            decode(UdpTunnel::Vxlan { gbp: false }, &bytes, &mut plain.clone()),
            Err(HeaderError::Vxlan)
        );
        // RFC 8926, section 3: an ordinary option and a critical one.
        let options = [0x01, 0x02, 0x03, 1, 9, 9, 9, 9, 0x01, 0x02, 0x80, 0];
        let geneve = TunnelInfo { oam: true, options: Options::new(&options).unwrap(), ..plain };
        let mut bytes = vec![3, 0xc0, 0x65, 0x58, 0x12, 0x34, 0x56, 0];
        bytes.extend(options);
        assert_eq!(encoded(UdpTunnel::Geneve, &geneve), bytes);
        assert_eq!(decode(UdpTunnel::Geneve, &bytes[..19], &mut geneve.clone()), Err(HeaderError::CutOff));
        bytes[0] |= 0x40;
        assert_eq!(decode(UdpTunnel::Geneve, &bytes, &mut geneve.clone()), Err(HeaderError::Version(1)));
        assert!(Options::new(&[0; 5]).is_none() && Options::new(&[0; 256]).is_none());
    }

    #[test]
    fn vxlan_gpe_says_what_is_within() {
        // draft-ietf-nvo3-vxlan-gpe, sections 3.1 and 3.2; NSH and MPLS as Linux numbers them (`include/net/tun_proto.h`).
        let within = [(1, 0x0800), (2, 0x86dd), (3, 0x6558), (4, 0x894f), (5, 0x8847)];
        let gpe = UdpTunnel::VxlanGpe;
        let info = TunnelInfo { id: Some(0x12_3456), ..TunnelInfo::default() };
        for (next, protocol) in within {
            let info = TunnelInfo { protocol, ..info.clone() };
            let bytes = [0x0c, 0, 0, next, 0x12, 0x34, 0x56, 0];
            assert_eq!(encoded(gpe, &info), bytes);
            let mut read = TunnelInfo::default();
            assert_eq!((decode(gpe, &bytes, &mut read), read), (Ok(8), info));
        }
        let refused = |at: usize, with: u8| {
            let mut bytes = [0x0c, 0, 0, 1, 0, 0, 0, 0];
            bytes[at] = with;
            decode(gpe, &bytes, &mut TunnelInfo::default()).unwrap_err()
        };
        // Without P, without I, OAM, version 1, other reserved bits, and what no number is known for.
        for first in [0x08, 0x04, 0x0d, 0x1c, 0x0e, 0x4c, 0x8c] {
            assert_eq!(refused(0, first), HeaderError::Vxlan, "{first:#x}");
        }
        for reserved in [1, 2, 7] {
            assert_eq!(refused(reserved, 1), HeaderError::Vxlan, "byte {reserved}");
        }
        assert_eq!((refused(3, 0), refused(3, 6)), (HeaderError::Protocol(0), HeaderError::Protocol(6)));
        let arp = TunnelInfo { protocol: 0x0806, ..info.clone() };
        assert_eq!(encode(gpe, &arp, &mut [0; MAX_LEN]), Err(HeaderError::Protocol(0x0806)));
    }

    #[test]
    fn what_is_no_frame_is_sent_by_no_tunnel_for_frames() {
        let ipv4 = TunnelInfo { protocol: 0x0800, ..TunnelInfo::default() };
        for kind in [UdpTunnel::Vxlan { gbp: false }, UdpTunnel::Geneve] {
            assert_eq!(encode(kind, &ipv4, &mut [0; MAX_LEN]), Err(HeaderError::Protocol(0x0800)));
        }
    }

    fn kinds() -> impl Strategy<Value = UdpTunnel> {
        let vxlan = any::<bool>().prop_map(|gbp| UdpTunnel::Vxlan { gbp });
        prop_oneof![vxlan, Just(UdpTunnel::VxlanGpe), Just(UdpTunnel::Geneve)]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in kinds(),
            vni in 0..1u32 << 24,
            gbp: Option<(u16, u8)>,
            oam: bool,
            words in prop::collection::vec(any::<[u8; 4]>(), 0..63),
            (_, protocol) in prop::sample::select(&NEXT_PROTOCOLS[..]),
        ) {
            let geneve = kind == UdpTunnel::Geneve;
            let with_policy = kind == UdpTunnel::Vxlan { gbp: true };
            let info = TunnelInfo {
                id: Some(vni),
                protocol: if kind == UdpTunnel::VxlanGpe { protocol } else { ETHERNET },
                gbp: gbp.filter(|_| with_policy).map(|(id, flags)| Gbp { id, flags: flags & GBP_FLAGS }),
                oam: oam && geneve,
                options: Options::new(if geneve { words.as_flattened() } else { &[] }).unwrap(),
                ..TunnelInfo::default()
            };
            let bytes = encoded(kind, &info);
            // What was there before does not matter.
            let mut read = TunnelInfo { id: None, oam: !oam, gbp: Some(Gbp::default()), ..TunnelInfo::default() };
            prop_assert_eq!(decode(kind, &bytes, &mut read), Ok(bytes.len()));
            prop_assert_eq!(read, info);
        }

        #[test]
        fn no_packet_does_harm(kind in kinds(), packet in prop::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(len) = decode(kind, &packet, &mut TunnelInfo::default()) {
                prop_assert!((8..=packet.len()).contains(&len));
            }
        }
    }
}
