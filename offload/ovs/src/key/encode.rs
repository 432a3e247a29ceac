//! Composing: key and mask to attributes.

use super::{
    CT_STATE_BITS, Form, LABEL_BITS, NO_PORT, attr, is_ethernet, is_nd, l3_attr, l4_attr, label_count,
};
use super::{ETH_TYPE_MIN, is_vlan, tunnel};
use crate::nla::Writer;
use flowlift_flow::key::VLAN_MAX;
use flowlift_flow::{AttrSet, Key, Mask, Match};

/// Bytes that the attributes of a key or mask rarely exceed.
const USUAL_LEN: usize = 256;

/// Appends the attributes of `key` to `out`, whose length is a multiple of 4.
///
/// ARP's operation 255 is written as such; `odp_flow_key_from_flow` turns it into 65535, which it then refuses to read.
pub fn encode_key(key: &Key, form: Form, out: &mut Vec<u8>) {
    let tcp_flags = key.tcp_flags.get() != 0;
    Composer { key, data: key, is_mask: false, form, only: None, tcp_flags, w: Writer::new(out) }.compose();
}

/// As [`encode_key`], with those attributes alone that `only` names.
pub fn encode_key_of(key: &Key, form: Form, only: &AttrSet, out: &mut Vec<u8>) {
    let tcp_flags = key.tcp_flags.get() != 0;
    let w = Writer::new(out);
    Composer { key, data: key, is_mask: false, form, only: Some(only), tcp_flags, w }.compose();
}

/// Appends the attributes of `mask` to `out`, as a mask for `key`: the key decides which headers there are.
///
/// Without `only`, each attribute that the key can have is there, with zeros for "don't care"; with it, those it names.
pub fn encode_mask(key: &Key, mask: &Mask, form: Form, only: Option<&AttrSet>, out: &mut Vec<u8>) {
    let tcp_flags = mask.0.tcp_flags.get() != 0;
    Composer { key, data: &mask.0, is_mask: true, form, only, tcp_flags, w: Writer::new(out) }.compose();
}

/// The key and the mask of a match. The key is complete, whatever attributes the match named, since a key without what
/// its own headers call for would be refused; the mask has the named ones (R20, R21).
pub fn encode_match(matching: &Match, form: Form) -> (Vec<u8>, Vec<u8>) {
    let (mut key, mut mask) = (Vec::with_capacity(USUAL_LEN), Vec::with_capacity(USUAL_LEN));
    let tcp_flags = matching.key.tcp_flags.get() != 0 || matching.mask.0.tcp_flags.get() != 0;
    let (data, w) = (&matching.key, Writer::new(&mut key));
    Composer { key: data, data, is_mask: false, form, only: None, tcp_flags, w }.compose();
    encode_mask(&matching.key, &matching.mask, form, Some(&matching.attrs), &mut mask);
    (key, mask)
}

/// Writes one key or one mask.
struct Composer<'a> {
    /// Decides which attributes there are.
    key: &'a Key,
    /// Gives their values: the key or the mask.
    data: &'a Key,
    is_mask: bool,
    form: Form,
    /// Attributes to write; all without.
    only: Option<&'a AttrSet>,
    /// TCP_FLAGS has something to say.
    tcp_flags: bool,
    w: Writer<'a>,
}

impl Composer<'_> {
    fn compose(&mut self) {
        self.metadata();
        if is_ethernet(self.key) {
            let mut payload = [0; 12];
            payload[..6].copy_from_slice(&self.data.eth_src);
            payload[6..].copy_from_slice(&self.data.eth_dst);
            self.put(0, attr::ETHERNET, &payload);
            self.tags(0);
        } else {
            self.type_and_headers(0);
        }
    }

    fn wants(&self, level: usize, attr: u8) -> bool {
        self.only.is_none_or(|set| set.has(level, attr))
    }

    fn put(&mut self, level: usize, attr: u8, payload: &[u8]) {
        if self.wants(level, attr) {
            self.w.put(attr, payload);
        }
    }

    fn metadata(&mut self) {
        let Self { key, data, .. } = *self;
        self.put(0, attr::RECIRC_ID, &data.recirc_id.to_ne_bytes());
        self.put(0, attr::DP_HASH, &data.dp_hash.to_ne_bytes());
        self.put(0, attr::PRIORITY, &data.skb_priority.to_ne_bytes());
        if (key.has_tunnel() || self.is_mask) && self.wants(0, attr::TUNNEL) {
            tunnel::encode(key, data, self.is_mask, self.only, &mut self.w);
        }
        if self.is_mask || key.in_port != NO_PORT {
            self.put(0, attr::IN_PORT, &data.in_port.to_ne_bytes());
        }
        self.put(0, attr::SKB_MARK, &data.skb_mark.to_ne_bytes());
        self.put(0, attr::CT_STATE, &(data.ct_state & CT_STATE_BITS).to_ne_bytes());
        self.put(0, attr::CT_ZONE, &data.ct_zone.to_ne_bytes());
        self.put(0, attr::CT_MARK, &data.ct_mark.to_ne_bytes());
        self.put(0, attr::CT_LABELS, &data.ct_label);
        if key.ct_orig_proto != 0 {
            self.original_tuple();
        }
        if self.form == Form::UserSpace {
            self.put(0, attr::PACKET_TYPE, &data.packet_type.get().to_be_bytes());
        }
    }

    /// `struct ovs_key_ct_tuple_ipv4` and `_ipv6`: addresses, ports, protocol, and padding to 4 bytes.
    fn original_tuple(&mut self) {
        let data = self.data;
        let (kind, address) = match l3_attr(self.key) {
            Some(attr::IPV4) => (attr::CT_ORIG_TUPLE_IPV4, 4),
            Some(attr::IPV6) => (attr::CT_ORIG_TUPLE_IPV6, 16),
            _ => return,
        };
        let mut payload = Vec::with_capacity(40);
        payload.extend_from_slice(&data.ct_orig_src[..address]);
        payload.extend_from_slice(&data.ct_orig_dst[..address]);
        payload.extend_from_slice(&data.ct_orig_tp_src.get().to_be_bytes());
        payload.extend_from_slice(&data.ct_orig_tp_dst.get().to_be_bytes());
        payload.extend_from_slice(&[data.ct_orig_proto, 0, 0, 0]);
        self.put(0, kind, &payload);
    }

    /// The tag of this level with the rest of the key nested behind it (R28, R30); without a tag, the rest.
    fn tags(&mut self, level: usize) {
        let Self { key, data, .. } = *self;
        let Some(tag) = key.vlan.get(level).filter(|tag| tag.tpid.get() != 0) else {
            return self.type_and_headers(level);
        };
        // The mask of the outer type is always exact: it says that the tag is there.
        let tpid = if self.is_mask { u16::MAX } else { tag.tpid.get() };
        self.put(level, attr::ETHERTYPE, &tpid.to_be_bytes());
        self.put(level, attr::VLAN, &data.vlan[level].tci.get().to_be_bytes());
        let inner = self.only.map_or(0, |set| set.0.get(level + 1).copied().unwrap_or(0));
        if !self.wants(level, attr::ENCAP) && inner == 0 {
            return;
        }
        let start = self.w.begin(attr::ENCAP);
        // Behind a tag that is cut off there is nothing (R35).
        if tag.tci.get() != 0 {
            if level + 1 < VLAN_MAX {
                self.tags(level + 1);
            } else {
                self.type_and_headers(level + 1);
            }
        }
        self.w.end(start);
    }

    /// The Ethernet type and what it calls for.
    fn type_and_headers(&mut self, level: usize) {
        let Self { key, data, is_mask, .. } = *self;
        let key_type = key.eth_type.get();
        if key_type < ETH_TYPE_MIN {
            // The convention for frames without an Ethernet type: no attribute in the key, an exact one in the mask.
            if is_mask && (self.only.is_none() || data.eth_type.get() != 0) {
                self.w.put(attr::ETHERTYPE, &data.eth_type.get().to_be_bytes());
            }
            return;
        }
        self.put(level, attr::ETHERTYPE, &data.eth_type.get().to_be_bytes());
        if is_vlan(key_type) {
            return;
        }
        if let Some(kind) = l3_attr(key) {
            self.l3(level, kind);
        }
        if let Some(kind) = l4_attr(key) {
            self.l4(level, kind);
        }
    }

    fn l3(&mut self, level: usize, kind: u8) {
        let Self { key, data, is_mask, .. } = *self;
        let (src, dst) = (data.ipv4_src.get().to_be_bytes(), data.ipv4_dst.get().to_be_bytes());
        let ip = [data.ip_proto, data.ip_tos, data.ip_ttl, data.ip_frag];
        if self.wants(level, kind) {
            if kind == attr::NSH {
                return tunnel::encode_nsh(key, data, is_mask, &mut self.w);
            }
            let start = self.w.begin(kind);
            let mut append = |bytes: &[u8]| self.w.append(bytes);
            match kind {
                attr::IPV4 => [&src, &dst, &ip].into_iter().for_each(|bytes| append(bytes)),
                attr::IPV6 => {
                    append(&data.ipv6_src);
                    append(&data.ipv6_dst);
                    append(&(data.ipv6_label.get() & LABEL_BITS).to_be_bytes());
                    append(&ip);
                }
                attr::ARP => {
                    // A mask has 8 bits for the operation, too; exact means exact.
                    let high = if is_mask && data.ip_proto == u8::MAX { u8::MAX } else { 0 };
                    append(&src);
                    append(&dst);
                    append(&[high, data.ip_proto]);
                    append(&data.arp_sha);
                    append(&data.arp_tha);
                    append(&[0, 0]);
                }
                _ => {
                    data.mpls[..label_count(key)].iter().for_each(|entry| append(&entry.get().to_be_bytes()))
                }
            }
            self.w.end(start);
        }
        if kind == attr::IPV6 && self.form == Form::Datapath {
            self.put(level, attr::IPV6_EXTHDRS, &data.ipv6_exthdrs.to_ne_bytes());
        }
    }

    fn l4(&mut self, level: usize, kind: u8) {
        let Self { key, data, is_mask, .. } = *self;
        let ([s0, s1], [d0, d1]) = (data.tp_src.get().to_be_bytes(), data.tp_dst.get().to_be_bytes());
        match kind {
            attr::ICMP | attr::ICMPV6 => self.put(level, kind, &[s1, d1]),
            _ => self.put(level, kind, &[s0, s1, d0, d1]),
        }
        if kind == attr::TCP && (self.tcp_flags || self.form == Form::Datapath || self.only.is_some()) {
            self.put(level, attr::TCP_FLAGS, &data.tcp_flags.get().to_be_bytes());
        }
        // As a mask, ND needs an exact match on the ICMPv6 type.
        if is_nd(key) && (!is_mask || s1 == u8::MAX) {
            let mut payload = [0; 28];
            payload[..16].copy_from_slice(&data.nd_target);
            payload[16..22].copy_from_slice(&data.arp_sha);
            payload[22..].copy_from_slice(&data.arp_tha);
            self.put(level, attr::ND, &payload);
        }
    }
}
