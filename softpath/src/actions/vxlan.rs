//! tnl_push of a VXLAN header.

use super::state::{Headers, NONE};
use crate::packet::Packet;
use flowlift_flow::action::VxlanHeader;
use flowlift_flow::key::{eth_type, ip_proto};

/// Bytes of the outer headers that an IPv4 total length counts, and those that a UDP length counts.
const IPV4_ON: usize = VxlanHeader::LEN - 14;
const UDP_ON: usize = IPV4_ON - 20;
/// UDP source ports as Open vSwitch chooses them, from the first one on.
const FIRST_PORT: u64 = 32_768;
const PORTS: u64 = 61_000 - FIRST_PORT;

/// Puts outer headers before a frame; false, and the frame is as it was, if it is too long or none. `flow` is the hash of its flow.
pub(super) fn push(packet: &mut Packet, headers: &mut Headers, header: &VxlanHeader, flow: u32) -> bool {
    let len = packet.len();
    let Ok(total) = u16::try_from(len + IPV4_ON) else { return false };
    if !packet.packet_type.is_ethernet() {
        return false;
    }
    let mut outer = *header.bytes();
    outer[16..18].copy_from_slice(&total.to_be_bytes());
    let sum = outer[14..34]
        .chunks_exact(2)
        .fold(0, |sum, word| sum + u32::from(u16::from_be_bytes([word[0], word[1]])));
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    outer[24..26].copy_from_slice(&(!(folded as u16)).to_be_bytes());
    if header.src_port() == 0 {
        let port = FIRST_PORT + ((u64::from(flow) * PORTS) >> 32);
        outer[34..36].copy_from_slice(&(port as u16).to_be_bytes());
    }
    // `total` has room for more than this.
    outer[38..40].copy_from_slice(&((len + UDP_ON) as u16).to_be_bytes());
    packet.insert(0, VxlanHeader::LEN).copy_from_slice(&outer);
    *headers = Headers { l2_5: NONE, l3: 14, l4: 34, pad: 0, eth_type: eth_type::IPV4, proto: ip_proto::UDP };
    true
}
