//! Reading: attributes to key and mask.

use super::{
    CT_STATE_BITS, Form, LABEL_BITS, MPLS_BOS, NO_PORT, NS_ETHERTYPE, attr, is_ethernet, is_nd, l3_attr,
    l4_attr,
};
use super::{ETH_TYPE_MIN, KeyError, is_vlan, tunnel};
use crate::nla::attrs;
use flowlift_flow::key::{ETH_TYPE_NONE, MPLS_MAX, VLAN_CFI, VLAN_MAX};
use flowlift_flow::{AttrSet, Frag, Key, Mask, Match, VlanTag};

/// Numbers up to the last attribute there is.
const ATTRS: usize = 33;

/// The length of each attribute's payload; `None` if it varies.
fn payload_len(kind: u8) -> Option<usize> {
    Some(match kind {
        attr::ENCAP | attr::TUNNEL | attr::MPLS | attr::NSH => return None,
        attr::VLAN | attr::ETHERTYPE | attr::ICMP | attr::ICMPV6 | attr::TCP_FLAGS => 2,
        attr::CT_ZONE | attr::IPV6_EXTHDRS => 2,
        attr::ETHERNET | attr::IPV4 => 12,
        attr::ARP => 24,
        attr::ND => 28,
        attr::IPV6 | attr::CT_ORIG_TUPLE_IPV6 => 40,
        attr::CT_LABELS | attr::CT_ORIG_TUPLE_IPV4 => 16,
        _ => 4,
    })
}

/// The attributes of one nesting level, by number, each at most once and of the right length.
struct Found<'a> {
    level: usize,
    by_number: [Option<&'a [u8]>; ATTRS],
}

impl<'a> Found<'a> {
    fn parse(bytes: &'a [u8], level: usize, form: Form) -> Result<Self, KeyError> {
        let mut by_number = [None; ATTRS];
        for item in attrs(bytes) {
            let item = item.map_err(|source| KeyError::Malformed { level, source })?;
            let kind = match u8::try_from(item.kind) {
                Ok(kind @ (1..=29 | attr::IPV6_EXTHDRS))
                    if kind != attr::PACKET_TYPE || form == Form::UserSpace =>
                {
                    kind
                }
                _ => return Err(KeyError::Unknown { attr: item.kind, level }),
            };
            if let Some(expected) = payload_len(kind)
                && expected != item.payload.len()
            {
                return Err(KeyError::Length { attr: kind, level, expected, actual: item.payload.len() });
            }
            if by_number[usize::from(kind)].replace(item.payload).is_some() {
                return Err(KeyError::Duplicate { attr: kind, level });
            }
        }
        Ok(Self { level, by_number })
    }

    fn payload(&self, kind: u8) -> Option<&'a [u8]> {
        self.by_number.get(usize::from(kind)).copied().flatten()
    }

    /// The first `N` bytes of an attribute; its length was checked before.
    fn get<const N: usize>(&self, kind: u8) -> Option<[u8; N]> {
        self.payload(kind)?.first_chunk().copied()
    }

    fn native32(&self, kind: u8) -> Option<u32> {
        self.get(kind).map(u32::from_ne_bytes)
    }

    fn native16(&self, kind: u8) -> Option<u16> {
        self.get(kind).map(u16::from_ne_bytes)
    }

    fn be16(&self, kind: u8) -> Option<u16> {
        self.get(kind).map(u16::from_be_bytes)
    }

    fn has(&self, kind: u8) -> bool {
        self.payload(kind).is_some()
    }

    /// The attributes as bits.
    fn bits(&self) -> u64 {
        (0..).zip(&self.by_number).filter(|(_, p)| p.is_some()).fold(0, |bits, (n, _)| bits | 1 << n)
    }

    /// Names in `set` what stands at this level.
    fn name(&self, set: &mut AttrSet) {
        set.0[self.level] = self.bits();
        if let Some(stack) = self.payload(attr::MPLS) {
            set.set_mpls_count(self.level, stack.len() / 4);
        }
        for inner in self.payload(attr::TUNNEL).into_iter().flat_map(attrs).flatten() {
            set.insert_tunnel(u8::try_from(inner.kind).unwrap_or(u8::MAX));
        }
    }

    /// Refuses the first attribute outside `allowed`.
    fn only(&self, allowed: u64) -> Result<(), KeyError> {
        match self.bits() & !allowed {
            0 => Ok(()),
            extra => Err(KeyError::Misplaced { attr: extra.trailing_zeros() as u8, level: self.level }),
        }
    }

    /// Refuses if `kind` is not there.
    fn needs(&self, kind: u8) -> Result<(), KeyError> {
        if self.has(kind) { Ok(()) } else { Err(KeyError::Missing { attr: kind, level: self.level }) }
    }
}

/// Metadata attributes: those that only stand at the outermost level.
const METADATA: u64 = 1 << attr::PRIORITY
    | 1 << attr::IN_PORT
    | 1 << attr::ETHERNET
    | 1 << attr::SKB_MARK
    | 1 << attr::TUNNEL
    | 1 << attr::DP_HASH
    | 1 << attr::RECIRC_ID
    | 1 << attr::CT_STATE
    | 1 << attr::CT_ZONE
    | 1 << attr::CT_MARK
    | 1 << attr::CT_LABELS
    | 1 << attr::CT_ORIG_TUPLE_IPV4
    | 1 << attr::CT_ORIG_TUPLE_IPV6
    | 1 << attr::PACKET_TYPE;

/// The attributes that the L3 and L4 headers of `key` allow.
fn headers_of(key: &Key) -> u64 {
    let mut bits = l3_attr(key).map_or(0, |kind| 1 << kind) | l4_attr(key).map_or(0, |kind| 1 << kind);
    if bits >> attr::TCP & 1 != 0 {
        bits |= 1 << attr::TCP_FLAGS;
    }
    if bits >> attr::IPV6 & 1 != 0 {
        bits |= 1 << attr::IPV6_EXTHDRS;
    }
    if is_nd(key) {
        bits |= 1 << attr::ND;
    }
    bits
}

/// Reads a key and which attributes it named.
///
/// A key without IN_PORT reads as port 0; whether it was there is in the set.
pub fn decode_key(bytes: &[u8], form: Form) -> Result<(Key, AttrSet), KeyError> {
    let mut key = Key::default();
    let mut named = AttrSet::default();
    let outer = Found::parse(bytes, 0, form)?;
    metadata(&outer, None, &mut key)?;
    key.eth_type = outer.be16(attr::ETHERTYPE).unwrap_or(ETH_TYPE_NONE).into();
    if !outer.has(attr::ETHERNET) && !outer.has(attr::PACKET_TYPE) && outer.has(attr::ETHERTYPE) {
        key.packet_type = (NS_ETHERTYPE << 16 | u32::from(key.eth_type.get())).into();
    }

    let mut found = outer;
    loop {
        found.name(&mut named);
        check_type(&found)?;
        if !(is_ethernet(&key) && found.level < VLAN_MAX && is_vlan(key.eth_type.get())) {
            break;
        }
        match tag(&found, form, &mut key)? {
            Some(inner) => found = inner,
            None => return Ok((key, named)),
        }
    }
    headers(&found, None, &mut key)?;
    for kind in [l3_attr(&key), l4_attr(&key), is_nd(&key).then_some(attr::ND)].into_iter().flatten() {
        found.needs(kind)?;
    }
    found.only(headers_of(&key) | outer_allowance(&key, &found) | 1 << attr::ETHERTYPE)?;
    values(&key)?;
    Ok((key, named))
}

/// Reads the metadata of a key, and nothing of its headers: what a client says of a packet that it sends along. A packet
/// without an Ethernet header is one whose key has ETHERTYPE and no ETHERNET. Without IN_PORT the port is [`NO_PORT`].
pub fn decode_metadata(bytes: &[u8], form: Form) -> Result<Key, KeyError> {
    let outer = Found::parse(bytes, 0, form)?;
    let mut key = Key::default();
    metadata(&outer, None, &mut key)?;
    (key.eth_src, key.eth_dst) = Default::default();
    if !outer.has(attr::IN_PORT) {
        key.in_port = NO_PORT;
    }
    if !outer.has(attr::ETHERNET)
        && !outer.has(attr::PACKET_TYPE)
        && let Some(eth_type) = outer.be16(attr::ETHERTYPE)
    {
        key.packet_type = (NS_ETHERTYPE << 16 | u32::from(eth_type)).into();
    }
    values(&key)?;
    Ok(key)
}

/// Metadata is allowed at the outermost level, where the tuple of the wrong IP version is not.
fn outer_allowance(key: &Key, found: &Found<'_>) -> u64 {
    if found.level != 0 {
        return 0;
    }
    let wrong = match l3_attr(key) {
        Some(attr::IPV4) => 1 << attr::CT_ORIG_TUPLE_IPV6,
        Some(attr::IPV6) => 1 << attr::CT_ORIG_TUPLE_IPV4,
        _ => 0,
    };
    METADATA & !wrong
}

/// An Ethernet type below 0x600 is a length, and has no attribute.
fn check_type(found: &Found<'_>) -> Result<(), KeyError> {
    match found.be16(attr::ETHERTYPE) {
        Some(value @ ..ETH_TYPE_MIN) => {
            Err(KeyError::Value { attr: attr::ETHERTYPE, field: "eth_type", value: value.into() })
        }
        _ => Ok(()),
    }
}

/// Reads the tag at a level whose Ethernet type is a tag's; gives the level behind it, or none if the tag is cut off.
fn tag<'a>(found: &Found<'a>, form: Form, key: &mut Key) -> Result<Option<Found<'a>>, KeyError> {
    let level = found.level;
    let metadata = if level == 0 { METADATA } else { 0 };
    found.only(metadata | 1 << attr::ETHERTYPE | 1 << attr::VLAN | 1 << attr::ENCAP)?;
    found.needs(attr::VLAN)?;
    found.needs(attr::ENCAP)?;
    let tci = found.be16(attr::VLAN).unwrap_or_default();
    let encap = found.payload(attr::ENCAP).unwrap_or_default();
    key.vlan[level] = VlanTag { tpid: key.eth_type, tci: tci.into() };
    match (tci, encap) {
        (0, []) => {
            key.eth_type = 0.into();
            return Ok(None);
        }
        (0, _) => return Err(KeyError::VlanTci { tci, level }),
        _ if tci & VLAN_CFI == 0 => return Err(KeyError::VlanTci { tci, level }),
        _ => {}
    }
    let inner = Found::parse(encap, level + 1, form)?;
    key.eth_type = inner.be16(attr::ETHERTYPE).unwrap_or(ETH_TYPE_NONE).into();
    Ok(Some(inner))
}

/// Reads a mask for `key` and which attributes it named. A missing attribute is "don't care" (U4), with exceptions that
/// only narrow (R16), as in Open vSwitch: a match on the Ethernet type excludes tags that the key does not have, and
/// RECIRC_ID is exact.
pub fn decode_mask(bytes: &[u8], key: &Key, form: Form) -> Result<(Mask, AttrSet), KeyError> {
    let mut mask = Mask::default();
    let mut named = AttrSet::default();
    let outer = Found::parse(bytes, 0, form)?;
    let m = &mut mask.0;
    m.recirc_id = u32::MAX;
    metadata(&outer, Some(key), m)?;
    // The kernel's form does not name it: whether a packet begins with an Ethernet header is always matched.
    if form == Form::Datapath {
        m.packet_type = u32::MAX.into();
    }
    let mut found = outer;
    loop {
        let level = found.level;
        found.name(&mut named);
        let eth_type = found.be16(attr::ETHERTYPE).unwrap_or_default();
        let Some(key_tag) = key.vlan.get(level).filter(|tag| tag.tpid.get() != 0) else {
            if key.eth_type.get() < ETH_TYPE_MIN {
                // "No Ethernet type" is matched exactly or not at all; as in text, only the mask names it.
                if !matches!(eth_type, 0 | u16::MAX) {
                    let (attr, value) = (attr::ETHERTYPE, eth_type.into());
                    return Err(KeyError::Value { attr, field: "mask of no eth_type", value });
                }
                named.0[level] &= !(1 << attr::ETHERTYPE);
            }
            m.eth_type = eth_type.into();
            break;
        };
        let metadata = if level == 0 { METADATA } else { 0 };
        found.only(metadata | 1 << attr::ETHERTYPE | 1 << attr::VLAN | 1 << attr::ENCAP)?;
        let tci = found.be16(attr::VLAN).unwrap_or_default();
        m.vlan[level] = VlanTag { tpid: u16::MAX.into(), tci: tci.into() };
        if key_tag.tci.get() == 0 {
            // Cut off is what tells this tag from all others.
            m.vlan[level].tci = u16::MAX.into();
        }
        found = Found::parse(found.payload(attr::ENCAP).unwrap_or_default(), level + 1, form)?;
        if key_tag.tci.get() == 0 {
            found.only(0)?;
            return Ok((mask, named));
        }
    }
    if form == Form::Datapath && !is_ethernet(key) {
        // What else the type of a bare packet says is its Ethernet type.
        m.packet_type = (u32::from(u16::MAX) << 16 | u32::from(m.eth_type.get())).into();
    }
    // With a tag at this level, its type would be the tag's (R30): a match on another type is one on no tag, too.
    if m.eth_type.get() != 0 {
        exclude_tags(m, found.level);
    }
    headers(&found, Some(key), m)?;
    let outer = if found.level == 0 { METADATA | 1 << attr::VLAN } else { 0 };
    found.only(headers_of(key) | outer | 1 << attr::ETHERTYPE)?;
    prerequisites(key, &found, m)?;
    Ok((mask, named))
}

/// Makes `mask` match exactly "no tag" from `level` on.
fn exclude_tags(mask: &mut Key, level: usize) {
    let exact = VlanTag { tpid: u16::MAX.into(), tci: u16::MAX.into() };
    mask.vlan.iter_mut().skip(level).for_each(|tag| *tag = exact);
}

/// Reads a match: a key and an optional mask. Without one, every attribute of the key is exact (R15).
pub fn decode_match(key: &[u8], mask: Option<&[u8]>, form: Form) -> Result<Match, KeyError> {
    let (key, key_attrs) = decode_key(key, form)?;
    let (mask, attrs) = match mask {
        Some(mask) => decode_mask(mask, &key, form)?,
        None => {
            let mut exact = Vec::new();
            super::encode_mask(&key, &Mask::exact(), form, Some(&key_attrs), &mut exact);
            let (mut mask, attrs) = decode_mask(&exact, &key, form)?;
            if key.eth_type.get() < ETH_TYPE_MIN && is_ethernet(&key) {
                mask.0.eth_type = u16::MAX.into();
                exclude_tags(&mut mask.0, key.vlan_count());
            }
            (mask, attrs)
        }
    };
    Ok(Match { key, mask, attrs })
}

/// Reads the attributes of the outermost level that are not about headers, and ETHERNET. `key` is the key of a mask.
fn metadata(found: &Found<'_>, key: Option<&Key>, out: &mut Key) -> Result<(), KeyError> {
    out.recirc_id = found.native32(attr::RECIRC_ID).unwrap_or(out.recirc_id);
    out.dp_hash = found.native32(attr::DP_HASH).unwrap_or_default();
    out.skb_priority = found.native32(attr::PRIORITY).unwrap_or_default();
    out.skb_mark = found.native32(attr::SKB_MARK).unwrap_or_default();
    out.in_port = found.native32(attr::IN_PORT).unwrap_or_default();
    out.ct_state = found.native32(attr::CT_STATE).unwrap_or_default();
    out.ct_zone = found.native16(attr::CT_ZONE).unwrap_or_default();
    out.ct_mark = found.native32(attr::CT_MARK).unwrap_or_default();
    out.ct_label = found.get(attr::CT_LABELS).unwrap_or_default();
    out.packet_type = found.get(attr::PACKET_TYPE).map(u32::from_be_bytes).unwrap_or_default().into();
    if let Some([s0, s1, s2, s3, s4, s5, d0, d1, d2, d3, d4, d5]) = found.get(attr::ETHERNET) {
        out.eth_src = [s0, s1, s2, s3, s4, s5];
        out.eth_dst = [d0, d1, d2, d3, d4, d5];
    }
    for (kind, address) in [(attr::CT_ORIG_TUPLE_IPV4, 4), (attr::CT_ORIG_TUPLE_IPV6, 16)] {
        if let Some((addresses, rest)) = found.payload(kind).and_then(|p| p.split_at_checked(address * 2))
            && let Some(&[s0, s1, d0, d1, proto, ..]) = rest.first_chunk::<8>()
        {
            out.ct_orig_src[..address].copy_from_slice(&addresses[..address]);
            out.ct_orig_dst[..address].copy_from_slice(&addresses[address..]);
            out.ct_orig_tp_src = u16::from_be_bytes([s0, s1]).into();
            out.ct_orig_tp_dst = u16::from_be_bytes([d0, d1]).into();
            out.ct_orig_proto = proto;
        }
    }
    if found.has(attr::CT_ORIG_TUPLE_IPV4) && found.has(attr::CT_ORIG_TUPLE_IPV6) {
        return Err(KeyError::Misplaced { attr: attr::CT_ORIG_TUPLE_IPV6, level: 0 });
    }
    match found.payload(attr::TUNNEL) {
        Some(payload) => tunnel::decode(payload, key, out),
        None => Ok(()),
    }
}

/// Reads L3 and L4 of the innermost level into `out`; with `mask_of`, as a mask for that key.
fn headers(found: &Found<'_>, mask_of: Option<&Key>, out: &mut Key) -> Result<(), KeyError> {
    if let Some([s0, s1, s2, s3, d0, d1, d2, d3, proto, tos, ttl, frag]) = found.get(attr::IPV4) {
        out.ipv4_src = u32::from_be_bytes([s0, s1, s2, s3]).into();
        out.ipv4_dst = u32::from_be_bytes([d0, d1, d2, d3]).into();
        (out.ip_proto, out.ip_tos, out.ip_ttl, out.ip_frag) = (proto, tos, ttl, frag);
    }
    if let Some((&src, rest)) = found.payload(attr::IPV6).and_then(|p| p.split_first_chunk())
        && let Some((&dst, rest)) = rest.split_first_chunk()
        && let Some(&[l0, l1, l2, l3, proto, tos, ttl, frag]) = rest.first_chunk()
    {
        (out.ipv6_src, out.ipv6_dst) = (src, dst);
        let label = u32::from_be_bytes([l0, l1, l2, l3]);
        out.ipv6_label = if mask_of.is_some() { label & LABEL_BITS } else { label }.into();
        (out.ip_proto, out.ip_tos, out.ip_ttl, out.ip_frag) = (proto, tos, ttl, frag);
    }
    if let Some((&[s0, s1, s2, s3, d0, d1, d2, d3, op0, op1], rest)) =
        found.payload(attr::ARP).and_then(|p| p.split_first_chunk())
        && let Some((&sha, rest)) = rest.split_first_chunk()
        && let Some(&tha) = rest.first_chunk()
    {
        if op0 != 0 && mask_of.is_none() {
            let value = u16::from_be_bytes([op0, op1]).into();
            return Err(KeyError::Value { attr: attr::ARP, field: "op", value });
        }
        out.ipv4_src = u32::from_be_bytes([s0, s1, s2, s3]).into();
        out.ipv4_dst = u32::from_be_bytes([d0, d1, d2, d3]).into();
        out.ip_proto = op1;
        (out.arp_sha, out.arp_tha) = (sha, tha);
    }
    if let Some(payload) = found.payload(attr::MPLS) {
        label_stack(found.level, payload, mask_of.is_some(), out)?;
    }
    if let Some(payload) = found.payload(attr::NSH) {
        tunnel::decode_nsh(payload, mask_of.is_some(), found.level, out)?;
    }
    for kind in [attr::TCP, attr::UDP, attr::SCTP] {
        if let Some([s0, s1, d0, d1]) = found.get(kind) {
            out.tp_src = u16::from_be_bytes([s0, s1]).into();
            out.tp_dst = u16::from_be_bytes([d0, d1]).into();
        }
    }
    for kind in [attr::ICMP, attr::ICMPV6] {
        if let Some([icmp_type, code]) = found.get(kind) {
            out.tp_src = u16::from(icmp_type).into();
            out.tp_dst = u16::from(code).into();
        }
    }
    out.tcp_flags = found.be16(attr::TCP_FLAGS).unwrap_or_default().into();
    out.ipv6_exthdrs = found.native16(attr::IPV6_EXTHDRS).unwrap_or_default();
    if let Some((&target, rest)) = found.payload(attr::ND).and_then(|p| p.split_first_chunk())
        && let Some((&sll, rest)) = rest.split_first_chunk()
        && let Some(&tll) = rest.first_chunk()
    {
        (out.nd_target, out.arp_sha, out.arp_tha) = (target, sll, tll);
    }
    Ok(())
}

/// Up to [`MPLS_MAX`] entries; of a key, the bottom of the stack only last.
fn label_stack(level: usize, payload: &[u8], is_mask: bool, out: &mut Key) -> Result<(), KeyError> {
    let (entries, odd) = payload.as_chunks::<4>();
    if !odd.is_empty() || entries.len() > MPLS_MAX {
        let (attr, expected) = (attr::MPLS, MPLS_MAX * 4);
        return Err(KeyError::Length { attr, level, expected, actual: payload.len() });
    }
    for (i, (to, from)) in out.mpls.iter_mut().zip(entries).enumerate() {
        let entry = u32::from_be_bytes(*from);
        if !is_mask && entry & MPLS_BOS != 0 && i + 1 < entries.len() {
            return Err(KeyError::Value { attr: attr::MPLS, field: "bos", value: entry.into() });
        }
        *to = entry.into();
    }
    Ok(())
}

/// Refuses fields of a key with values that no packet has.
fn values(key: &Key) -> Result<(), KeyError> {
    let refuse = |attr, field, value: u64| Err(KeyError::Value { attr, field, value });
    match l3_attr(key) {
        Some(attr @ (attr::IPV4 | attr::IPV6)) if key.ip_frag > Frag::Later as u8 => {
            refuse(attr, "frag", key.ip_frag.into())
        }
        Some(attr::IPV6) if key.ipv6_label.get() & !LABEL_BITS != 0 => {
            refuse(attr::IPV6, "label", key.ipv6_label.get().into())
        }
        _ if key.ct_state & !CT_STATE_BITS != 0 => refuse(attr::CT_STATE, "ct_state", key.ct_state.into()),
        _ => Ok(()),
    }
}

/// Refuses a mask that looks into a header without an exact match on what says that the header is there.
fn prerequisites(key: &Key, found: &Found<'_>, mask: &Key) -> Result<(), KeyError> {
    let looks_into = |kind: u8| found.payload(kind).is_some_and(|p| p.iter().any(|byte| *byte != 0));
    if let Some(l3) = l3_attr(key).filter(|kind| looks_into_l3(*kind, found))
        && mask.eth_type.get() != u16::MAX
    {
        return Err(KeyError::MaskWithout { attr: l3, needs: attr::ETHERTYPE });
    }
    if let Some(l4) = l4_attr(key) {
        let l3 = l3_attr(key).unwrap_or(attr::IPV4);
        let flags = l4 == attr::TCP && looks_into(attr::TCP_FLAGS);
        if (looks_into(l4) || flags) && mask.ip_proto != u8::MAX {
            return Err(KeyError::MaskWithout { attr: l4, needs: l3 });
        }
        if looks_into(attr::ND) && mask.tp_src.get() & 0xff != 0xff {
            return Err(KeyError::MaskWithout { attr: attr::ND, needs: l4 });
        }
    }
    Ok(())
}

/// True if the mask of an L3 attribute has any bit; NSH has headers of its own within.
fn looks_into_l3(kind: u8, found: &Found<'_>) -> bool {
    let any = |bytes: &[u8]| bytes.iter().any(|byte| *byte != 0);
    match found.payload(kind) {
        Some(payload) if kind == attr::NSH => attrs(payload).flatten().any(|inner| any(inner.payload)),
        Some(payload) => any(payload),
        None => false,
    }
}
