//! Tunnel ports: what is outside a packet is a [`TunnelInfo`] to the port and `tun_*` fields of a [`Key`] to the softpath. What is within
//! is a protocol to the port, and a packet type to the softpath.

use flowlift_flow::Key;
use flowlift_flow::key::tun_flags;
use flowlift_port::tunnel::{ETHERNET, Erspan, Gbp, Options};
use flowlift_port::{Burst, Frame, Offload, PortError, PortStats, TunnelInfo, TunnelPort, TunnelSender};
use flowlift_softpath::packet::PacketType;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

/// A tunnel port's receiving side.
#[derive(Debug)]
pub struct TunnelInlet {
    port: TunnelPort,
    /// The packet's fields, overwritten for each.
    key: Box<Key>,
}

impl TunnelInlet {
    /// Receives from `port`.
    pub fn new(port: TunnelPort) -> Self {
        Self { port, key: Box::default() }
    }

    /// The sending side.
    pub fn outlet(&self) -> TunnelOutlet {
        TunnelOutlet { sender: self.port.sender(), info: Box::default() }
    }

    /// What it counted.
    pub fn stats(&self) -> PortStats {
        self.port.stats()
    }

    /// Takes the packets that wait, with their `tun_*` fields and packet type.
    ///
    /// # Errors
    /// What the system says.
    pub fn receive(
        &mut self,
        burst: &mut Burst,
        each: &mut dyn FnMut(Frame<'_>, &Key),
    ) -> Result<usize, PortError> {
        let Self { port, key } = self;
        port.receive(burst, &mut |info, frame| {
            to_key(info, key);
            key.packet_type = packet_type(info.protocol).0.into();
            each(frame, key);
        })
    }
}

impl AsFd for TunnelInlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.port.as_fd()
    }
}

/// A tunnel port's sending side.
#[derive(Debug)]
pub struct TunnelOutlet {
    sender: TunnelSender,
    /// The packet's, overwritten for each.
    info: Box<TunnelInfo>,
}

impl TunnelOutlet {
    /// Sends a packet with what the `tun_*` fields of `tunnel` say outside; without them it goes nowhere. The port has counted
    /// what it did not take, which may be all but Ethernet frames.
    pub fn send(
        &mut self,
        packet: &[u8],
        packet_type: PacketType,
        offload: Option<Offload>,
        tunnel: Option<&Key>,
    ) {
        match tunnel {
            Some(tunnel) => {
                to_info(tunnel, &mut self.info);
                self.info.protocol = protocol(packet_type);
                let _ = self.sender.send(&self.info, Frame { offload, ..Frame::new(packet) });
            }
            None => self.sender.refuse(),
        }
    }

    /// Sends what is kept to be sent together.
    pub fn flush(&mut self) {
        let _ = self.sender.flush();
    }

    /// The `tun_*` fields with which `packet` would leave: `tunnel`, and what the port and the host's routes choose where that
    /// leaves a choice. `None` if it would not leave.
    pub fn egress(&mut self, packet: &[u8], packet_type: PacketType, tunnel: &Key) -> Option<Box<Key>> {
        to_info(tunnel, &mut self.info);
        self.info.protocol = protocol(packet_type);
        self.sender.complete(&mut self.info, packet).ok()?;
        let mut key = Box::new(tunnel.clone());
        to_key(&self.info, &mut key);
        // As it was asked for: these are flags, and the options may be empty.
        key.tun_flags = tunnel.tun_flags;
        Some(key)
    }
}

/// What a protocol says is within.
fn packet_type(protocol: u16) -> PacketType {
    if protocol == ETHERNET { PacketType::ETHERNET } else { PacketType::bare(protocol) }
}

/// The protocol of a packet within.
fn protocol(packet_type: PacketType) -> u16 {
    if packet_type.is_ethernet() { ETHERNET } else { packet_type.eth_type() }
}

/// Fills the `tun_*` fields of `key` from `info`.
fn to_key(info: &TunnelInfo, key: &mut Key) {
    let mut flags = tun_flags::PRESENT;
    let mut flag = |on: bool, flag: u16| flags |= if on { flag } else { 0 };
    flag(info.id.is_some(), tun_flags::KEY);
    flag(info.checksum, tun_flags::CSUM);
    flag(info.dont_fragment, tun_flags::DF);
    flag(info.oam, tun_flags::OAM);
    flag(info.gbp.is_some(), tun_flags::GBP);
    flag(info.erspan.is_some(), tun_flags::ERSPAN);
    let options = info.options.bytes();
    flag(!options.is_empty(), tun_flags::GENEVE);
    key.tun_flags = flags.into();
    key.tun_id = u64::from(info.id.unwrap_or(0)).into();
    (key.tun_tos, key.tun_ttl) = (info.tos, info.ttl);
    (key.tun_tp_src, key.tun_tp_dst) = (info.src_port.into(), info.dst_port.into());
    let (v4, v6) = addresses(info.src);
    (key.tun_ipv4_src, key.tun_ipv6_src) = (v4.into(), v6);
    let (v4, v6) = addresses(info.dst);
    (key.tun_ipv4_dst, key.tun_ipv6_dst) = (v4.into(), v6);
    let gbp = info.gbp.unwrap_or_default();
    (key.tun_gbp_id, key.tun_gbp_flags) = (gbp.id.into(), gbp.flags);
    let (version, index, egress, hwid) = match info.erspan {
        None => (0, 0, false, 0),
        Some(Erspan::V1 { index }) => (1, index, false, 0),
        Some(Erspan::V2 { egress, hwid }) => (2, 0, egress, hwid),
    };
    (key.tun_erspan_ver, key.tun_erspan_idx) = (version, index.into());
    (key.tun_erspan_dir, key.tun_erspan_hwid) = (egress.into(), hwid);
    let old = usize::from(key.tun_opts_len);
    key.tun_opts_len = options.len() as u8;
    if let Some(before) = key.tun_opts.get_mut(..old) {
        before.fill(0);
    }
    if let Some(now) = key.tun_opts.get_mut(..options.len()) {
        now.copy_from_slice(options);
    }
}

/// An address as IPv4 and as IPv6, one of which is 0.
fn addresses(address: IpAddr) -> (u32, [u8; 16]) {
    match address {
        IpAddr::V4(v4) => (v4.to_bits(), [0; 16]),
        IpAddr::V6(v6) => (0, v6.octets()),
    }
}

/// Fills all of `info` but the protocol from the `tun_*` fields of `key`.
fn to_info(key: &Key, info: &mut TunnelInfo) {
    let flags = key.tun_flags.get();
    let has = |flag: u16| flags & flag != 0;
    let v6 = key.tun_ipv6_dst != [0; 16];
    let address = |four: u32, six: [u8; 16]| match v6 {
        true => IpAddr::V6(Ipv6Addr::from(six)),
        false => IpAddr::V4(Ipv4Addr::from(four)),
    };
    info.src = address(key.tun_ipv4_src.get(), key.tun_ipv6_src);
    info.dst = address(key.tun_ipv4_dst.get(), key.tun_ipv6_dst);
    (info.tos, info.ttl) = (key.tun_tos, key.tun_ttl);
    (info.src_port, info.dst_port) = (key.tun_tp_src.get(), key.tun_tp_dst.get());
    (info.dont_fragment, info.checksum) = (has(tun_flags::DF), has(tun_flags::CSUM));
    // No header has room for more than 32 bits; what is above is no part of it.
    info.id = has(tun_flags::KEY).then_some(key.tun_id.get() as u32);
    info.gbp = has(tun_flags::GBP).then_some(Gbp { id: key.tun_gbp_id.get(), flags: key.tun_gbp_flags });
    info.erspan = match key.tun_erspan_ver {
        1 => Some(Erspan::V1 { index: key.tun_erspan_idx.get() }),
        2 => Some(Erspan::V2 { egress: key.tun_erspan_dir & 1 != 0, hwid: key.tun_erspan_hwid }),
        _ => None,
    };
    info.oam = has(tun_flags::OAM);
    let options = key.tun_opts.get(..usize::from(key.tun_opts_len)).and_then(Options::new);
    info.options = options.unwrap_or_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(dst: &str) -> TunnelInfo {
        TunnelInfo {
            src: if dst.contains(':') { "2001:db8::1" } else { "192.0.2.1" }.parse().unwrap(),
            dst: dst.parse().unwrap(),
            tos: 0x28,
            ttl: 63,
            src_port: 40_000,
            dst_port: 4789,
            ..TunnelInfo::default()
        }
    }

    #[test]
    fn what_is_outside_survives_the_key() {
        let options = Options::new(&[1, 2, 3, 1, 9, 9, 9, 9]).unwrap();
        let gbp = Some(Gbp { id: 300, flags: 8 });
        let cases = [
            info("192.0.2.2"),
            TunnelInfo { id: Some(0xdead_beef), checksum: true, dont_fragment: true, ..info("192.0.2.2") },
            TunnelInfo { id: Some(7), options, oam: true, ..info("2001:db8::2") },
            TunnelInfo { id: Some(7), gbp, ..info("192.0.2.2") },
            TunnelInfo { id: Some(1), erspan: Some(Erspan::V1 { index: 0xf_ffff }), ..info("192.0.2.2") },
            TunnelInfo {
                id: Some(1),
                erspan: Some(Erspan::V2 { egress: true, hwid: 63 }),
                ..info("2001:db8::2")
            },
        ];
        // What was there before does not matter, in either direction.
        let (mut key, mut back) = (Key::default(), TunnelInfo::default());
        for info in cases.iter().chain(cases.iter().rev()) {
            to_key(info, &mut key);
            to_info(&key, &mut back);
            assert_eq!(back, *info);
        }
    }
}
