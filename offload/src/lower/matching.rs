//! A flow's match in terms of a NIC's fields, and then in the layout of one table.
//!
//! The rule of the house is R16: an entry may match more narrowly than the flow, never more widely. Every mask bit of
//! the flow therefore ends in one of three ways: as a bit of the entry's mask, as a constant that every packet in the
//! NIC's tables has anyway (metadata that only software makes, fields of headers that another matched field excludes),
//! or as a refusal.

use crate::keyfields::{FIRST_CONSTANT_WORD, Known, METADATA_WORDS, part_of};
use crate::pipeline::{all_bits, field_of, takes, write};
use crate::refusal::{Cause, FieldCause};
use flowlift_driver::nic::{Field, ParserCaps, TableCaps};
use flowlift_flow::key::{ETH_TYPE_NONE, VLAN_CFI, eth_type, ip_proto};
use flowlift_flow::{Match, PortNo};
use smallvec::SmallVec;

/// What the flow's match says about the network layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L3 {
    /// The Ethernet type is not matched.
    Any,
    Ipv4,
    Ipv6,
    Arp,
    /// A type without fields of its own.
    Other,
}

/// What the flow's match says about the transport layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum L4 {
    /// IP, and the protocol is not matched exactly.
    Any,
    Tcp,
    Udp,
    Sctp,
    /// ICMP on IPv4, ICMPv6 on IPv6.
    Icmp,
    /// A protocol without fields of its own, or no IP.
    Other,
}

/// A field of the NIC that the flow wants matched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub(crate) field: Field,
    /// Name in OVS's text form.
    pub(crate) name: &'static str,
    pub(crate) value: u128,
    pub(crate) mask: u128,
    /// Bits that are 0 in every packet, and may be matched too where a table takes exact masks only.
    pub(crate) free: u128,
    /// A field that says the same with all its bits 0.
    pub(crate) instead: Option<Field>,
}

/// Where the flow's packets come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InPort {
    Any,
    Exact(PortNo),
    /// Value and mask.
    Masked(u32, u32),
}

/// A flow's match in terms of a NIC.
#[derive(Debug, Clone)]
pub(crate) struct Wants {
    pub(crate) in_port: InPort,
    /// 0 for a flow that is met by packets from the wire.
    pub(crate) recirc_id: u32,
    pub(crate) l3: L3,
    pub(crate) l4: L4,
    /// VLAN tags that are there for certain.
    pub(crate) tags: u8,
    /// There is no tag below those.
    pub(crate) no_more_tags: bool,
    pub(crate) fields: SmallVec<[Want; 16]>,
}

fn refuse<T>(name: &'static str, why: FieldCause) -> Result<T, Cause> {
    Err(Cause::Field { name, why })
}

/// A field that is 0 in every packet that the rest of the flow matches.
fn must_be_zero(name: &'static str, value: u128, mask: u128) -> Result<(), Cause> {
    if value & mask == 0 { Ok(()) } else { refuse(name, FieldCause::Impossible) }
}

struct Builder {
    fields: SmallVec<[Want; 16]>,
}

impl Builder {
    fn want(&mut self, field: Field, name: &'static str, value: u128, mask: u128) {
        self.want_free(field, name, value, mask, 0);
    }

    fn want_free(&mut self, field: Field, name: &'static str, value: u128, mask: u128, free: u128) {
        if mask != 0 {
            self.fields.push(Want { field, name, value: value & mask, mask, free, instead: None });
        }
    }
}

fn mac(m: &[u8; 6]) -> u128 {
    m.iter().fold(0, |v, b| v << 8 | u128::from(*b))
}

/// The flow's match in terms of a NIC's fields, or why no table of any NIC could have it.
pub(crate) fn wants(m: &Match, parser: ParserCaps) -> Result<Wants, Cause> {
    let (k, mask) = (&m.key, &m.mask.0);
    let in_port = match mask.in_port {
        0 => InPort::Any,
        u32::MAX => InPort::Exact(PortNo(k.in_port)),
        bits => InPort::Masked(k.in_port & bits, bits),
    };
    // A flow that does not ask for the recirculation ID is narrowed to packets from the wire.
    let recirc_id = match mask.recirc_id {
        u32::MAX => k.recirc_id,
        bits if k.recirc_id & bits == 0 => 0,
        _ => return refuse("recirc_id", FieldCause::PartlyMasked),
    };

    let mut b = Builder { fields: SmallVec::new() };
    b.want(Field::EthDst, "eth.dst", mac(&k.eth_dst), mac(&mask.eth_dst));
    b.want(Field::EthSrc, "eth.src", mac(&k.eth_src), mac(&mask.eth_src));
    let l3 = ethernet_type(m, &mut b)?;
    let (tags, no_more_tags) = vlans(m, l3, parser, &mut b)?;
    let l4 = network(m, l3, &mut b)?;
    transport(m, l3, l4, &mut b)?;
    constants(m, l3)?;
    if !parser.whole {
        unparsed(m, l3, &b)?;
    }
    Ok(Wants { in_port, recirc_id, l3, l4, tags, no_more_tags, fields: b.fields })
}

/// A parser that lets every packet through says nothing of what is above the Ethernet type: a fragment, or a packet
/// whose headers are cut off, would be found where the flow does not have it.
fn unparsed(m: &Match, l3: L3, b: &Builder) -> Result<(), Cause> {
    if let Some(w) = b.fields.iter().find(|w| w.field.above_ethernet()) {
        return refuse(w.name, FieldCause::NotParsed);
    }
    let ip = matches!(l3, L3::Any | L3::Ipv4 | L3::Ipv6);
    if ip && m.mask.0.ip_frag != 0 { refuse("ip.frag", FieldCause::NotParsed) } else { Ok(()) }
}

fn ethernet_type(m: &Match, b: &mut Builder) -> Result<L3, Cause> {
    let (value, mask) = (m.key.eth_type.get(), m.mask.0.eth_type.get());
    if mask == 0 {
        return Ok(L3::Any);
    }
    if mask != 0xffff {
        // A length field, which the NIC may show as a type, would match some masks although the key holds 0x05ff.
        return refuse("eth_type", FieldCause::PartlyMasked);
    }
    let l3 = match value {
        // Frames without a type, and types that announce headers which a NIC's parser does not take: a third tag,
        // labels, service headers, and RARP.
        ETH_TYPE_NONE
        | eth_type::VLAN
        | eth_type::QINQ
        | eth_type::MPLS
        | eth_type::MPLS_MCAST
        | eth_type::NSH
        | eth_type::RARP => return refuse("eth_type", FieldCause::TypeNotParsed(value)),
        0..0x0600 => return refuse("eth_type", FieldCause::Impossible),
        eth_type::IPV4 => L3::Ipv4,
        eth_type::IPV6 => L3::Ipv6,
        eth_type::ARP => L3::Arp,
        _ => L3::Other,
    };
    b.want(Field::EthType, "eth_type", u128::from(value), 0xffff);
    Ok(l3)
}

/// Wants of both tags; how many are there for certain, and whether none is below those.
fn vlans(m: &Match, l3: L3, parser: ParserCaps, b: &mut Builder) -> Result<(u8, bool), Cause> {
    const FIELDS: [(Field, Field, &str, &str); 2] = [
        (Field::Vlan0Tci, Field::Vlan0Tpid, "vlan.tci", "vlan.tpid"),
        (Field::Vlan1Tci, Field::Vlan1Tpid, "encap.vlan.tci", "encap.vlan.tpid"),
    ];
    let mut tags = 0;
    for (n, (tci_field, tpid_field, tci_name, tpid_name)) in FIELDS.into_iter().enumerate() {
        let (k, mask) = (&m.key.vlan[n], &m.mask.0.vlan[n]);
        let (tci, tci_mask) = (k.tci.get(), mask.tci.get());
        let (tpid, tpid_mask) = (k.tpid.get(), mask.tpid.get());
        let says_absent = (tci_mask & VLAN_CFI != 0 && tci & VLAN_CFI == 0
            || tpid_mask == 0xffff && tpid == 0)
            && tci & tci_mask == 0
            && tpid & tpid_mask == 0;
        if says_absent && l3 != L3::Any && usize::from(parser.tags) <= n {
            // A further tag would be seen as the Ethernet type, and that one is no tag's.
            return Ok((tags, usize::from(tags) == n));
        }
        if says_absent && l3 == L3::Any && !parser.service_tags {
            return refuse(tci_name, FieldCause::Needs("eth_type"));
        }
        if says_absent {
            // Without the outer tag there is no inner one either. Tags that are cut off are not parsed, so that the
            // protocol ID and the tag are both zero or neither is.
            b.fields.push(Want {
                field: tci_field,
                name: tci_name,
                value: 0,
                mask: 0xffff,
                free: 0,
                instead: Some(tpid_field),
            });
            let inner = &m.mask.0.vlan[1];
            let inner_asked =
                (inner.tci.get() & m.key.vlan[1].tci.get()) | (inner.tpid.get() & m.key.vlan[1].tpid.get());
            if n == 1 || inner_asked == 0 {
                return Ok((tags, usize::from(tags) == n));
            }
            // The flow asks for an inner tag without an outer one: let the NIC compare, and never find it.
            b.want(Field::Vlan1Tci, "encap.vlan.tci", m.key.vlan[1].tci.get().into(), inner.tci.get().into());
            b.want(
                Field::Vlan1Tpid,
                "encap.vlan.tpid",
                m.key.vlan[1].tpid.get().into(),
                inner.tpid.get().into(),
            );
            return Ok((tags, true));
        }
        if tpid & tpid_mask != 0 && tci_mask & VLAN_CFI != 0 && tci & VLAN_CFI == 0 {
            // A tag that is cut off (R35).
            return refuse(tci_name, FieldCause::NotParsed);
        }
        if parser.service_tags || tpid_mask == 0 {
            b.want(tci_field, tci_name, tci.into(), tci_mask.into());
            b.want(tpid_field, tpid_name, tpid.into(), tpid_mask.into());
        } else if (tpid ^ eth_type::VLAN) & tpid_mask == 0 {
            // Where there is a tag, it is one of this type.
            b.want(tci_field, tci_name, (tci | VLAN_CFI).into(), (tci_mask | VLAN_CFI).into());
        } else {
            return refuse(tpid_name, FieldCause::NotParsed);
        }
        let present = tci & tci_mask & VLAN_CFI != 0 || tpid_mask == 0xffff && tpid != 0;
        if present && usize::from(tags) == n {
            tags += 1;
        }
    }
    Ok((tags, false))
}

/// Wants of IP and ARP; what is known of the transport layer.
fn network(m: &Match, l3: L3, b: &mut Builder) -> Result<L4, Cause> {
    let (k, mask) = (&m.key, &m.mask.0);
    let ip = matches!(l3, L3::Ipv4 | L3::Ipv6);
    let names: [&'static str; 5] = match l3 {
        L3::Ipv6 => ["ipv6.src", "ipv6.dst", "ipv6.proto", "ipv6.tclass", "ipv6.hlimit"],
        L3::Arp => ["arp.sip", "arp.tip", "arp.op", "ipv4.tos", "ipv4.ttl"],
        _ => ["ipv4.src", "ipv4.dst", "ipv4.proto", "ipv4.tos", "ipv4.ttl"],
    };
    let v4 = [
        (k.ipv4_src.get(), mask.ipv4_src.get(), Field::Ipv4Src, Field::ArpSpa, names[0]),
        (k.ipv4_dst.get(), mask.ipv4_dst.get(), Field::Ipv4Dst, Field::ArpTpa, names[1]),
    ];
    for (value, bits, on_ip, on_arp, name) in v4 {
        match l3 {
            L3::Ipv4 => b.want(on_ip, name, value.into(), bits.into()),
            L3::Arp => b.want(on_arp, name, value.into(), bits.into()),
            L3::Any if bits != 0 => return refuse(name, FieldCause::Needs("eth_type")),
            _ => must_be_zero(name, value.into(), bits.into())?,
        }
    }
    let v6 = [
        (k.ipv6_src, mask.ipv6_src, Field::Ipv6Src, "ipv6.src"),
        (k.ipv6_dst, mask.ipv6_dst, Field::Ipv6Dst, "ipv6.dst"),
    ];
    for (value, bits, field, name) in v6 {
        let (value, bits) = (u128::from_be_bytes(value), u128::from_be_bytes(bits));
        match l3 {
            L3::Ipv6 => b.want(field, name, value, bits),
            L3::Any if bits != 0 => return refuse(name, FieldCause::Needs("eth_type")),
            _ => must_be_zero(name, value, bits)?,
        }
    }
    let (label, label_mask) = (k.ipv6_label.get(), mask.ipv6_label.get());
    match l3 {
        L3::Ipv6 => {
            must_be_zero("ipv6.label", label.into(), (label_mask & !0xf_ffff).into())?;
            b.want_free(
                Field::Ipv6Label,
                "ipv6.label",
                label.into(),
                (label_mask & 0xf_ffff).into(),
                0xfff0_0000,
            );
        }
        L3::Any if label_mask != 0 => return refuse("ipv6.label", FieldCause::Needs("eth_type")),
        _ => must_be_zero("ipv6.label", label.into(), label_mask.into())?,
    }
    let bytes =
        [(k.ip_tos, mask.ip_tos, Field::IpTos, names[3]), (k.ip_ttl, mask.ip_ttl, Field::IpTtl, names[4])];
    for (value, bits, field, name) in bytes {
        match l3 {
            L3::Ipv4 | L3::Ipv6 => b.want(field, name, value.into(), bits.into()),
            L3::Any if bits != 0 => return refuse(name, FieldCause::Needs("eth_type")),
            _ => must_be_zero(name, value.into(), bits.into())?,
        }
    }
    // No fragment gets into a table.
    if l3 == L3::Any || ip {
        if k.ip_frag & mask.ip_frag != 0 {
            return refuse("ip.frag", FieldCause::NotParsed);
        }
    } else {
        must_be_zero("ip.frag", k.ip_frag.into(), mask.ip_frag.into())?;
    }
    protocol(m, l3, names[2], b)
}

/// Wants of the protocol, or ARP's operation.
fn protocol(m: &Match, l3: L3, name: &'static str, b: &mut Builder) -> Result<L4, Cause> {
    let (value, bits) = (m.key.ip_proto, m.mask.0.ip_proto);
    match l3 {
        L3::Any if bits != 0 => return refuse(name, FieldCause::Needs("eth_type")),
        L3::Any => return Ok(L4::Any),
        L3::Arp => {
            // The key holds 0 for an operation above 255; those packets are left to software.
            if bits != 0 {
                b.want(Field::ArpOp, name, value.into(), 0xff00 | u128::from(bits));
            }
            return Ok(L4::Other);
        }
        L3::Other => {
            must_be_zero(name, value.into(), bits.into())?;
            return Ok(L4::Other);
        }
        L3::Ipv4 | L3::Ipv6 => b.want(Field::IpProto, name, value.into(), bits.into()),
    }
    if bits != 0xff {
        return Ok(L4::Any);
    }
    if l3 == L3::Ipv6 && is_extension(value) {
        return refuse(name, FieldCause::NotParsed);
    }
    Ok(match (value, l3) {
        (ip_proto::TCP, _) => L4::Tcp,
        (ip_proto::UDP, _) => L4::Udp,
        (ip_proto::SCTP, _) => L4::Sctp,
        (ip_proto::ICMP, L3::Ipv4) | (ip_proto::ICMPV6, L3::Ipv6) => L4::Icmp,
        _ => L4::Other,
    })
}

/// Next headers that are, or may be taken for, extension headers.
pub(crate) fn is_extension(next_header: u8) -> bool {
    matches!(next_header, 0 | 43 | 44 | 50 | 51 | 59 | 60 | 135 | 139 | 140)
}

/// True for the ICMPv6 types of neighbour discovery, which a NIC's parser leaves to software.
pub(crate) fn is_neighbour_discovery(icmp_type: u16) -> bool {
    matches!(icmp_type, 135 | 136)
}

fn transport(m: &Match, l3: L3, l4: L4, b: &mut Builder) -> Result<(), Cause> {
    let (k, mask) = (&m.key, &m.mask.0);
    let names = match l4 {
        L4::Tcp => ["tcp.src", "tcp.dst"],
        L4::Udp => ["udp.src", "udp.dst"],
        L4::Sctp => ["sctp.src", "sctp.dst"],
        L4::Icmp => ["icmp.type", "icmp.code"],
        L4::Any | L4::Other => ["tp.src", "tp.dst"],
    };
    let needs = if l3 == L3::Any { "eth_type" } else { "ip.proto" };
    let ports = [
        (k.tp_src.get(), mask.tp_src.get(), Field::L4Src, names[0]),
        (k.tp_dst.get(), mask.tp_dst.get(), Field::L4Dst, names[1]),
    ];
    for (value, bits, field, name) in ports {
        match l4 {
            L4::Tcp | L4::Udp | L4::Sctp => b.want(field, name, value.into(), bits.into()),
            L4::Icmp => {
                // Type and code are bytes.
                must_be_zero(name, value.into(), (bits & 0xff00).into())?;
                b.want_free(field, name, value.into(), (bits & 0xff).into(), 0xff00);
            }
            L4::Any if bits != 0 => return refuse(name, FieldCause::Needs(needs)),
            _ => must_be_zero(name, value.into(), bits.into())?,
        }
    }
    let (flags, flag_bits) = (k.tcp_flags.get(), mask.tcp_flags.get());
    match l4 {
        L4::Tcp => {
            must_be_zero("tcp_flags", flags.into(), (flag_bits & 0xf000).into())?;
            b.want_free(Field::TcpFlags, "tcp_flags", flags.into(), (flag_bits & 0xfff).into(), 0xf000);
        }
        L4::Any if flag_bits != 0 => return refuse("tcp_flags", FieldCause::Needs(needs)),
        _ => must_be_zero("tcp_flags", flags.into(), flag_bits.into())?,
    }
    neighbour_discovery(m, l3, l4, b)
}

/// ARP's hardware addresses, which share their place in the key with those of neighbour discovery.
fn neighbour_discovery(m: &Match, l3: L3, l4: L4, b: &mut Builder) -> Result<(), Cause> {
    let (k, mask) = (&m.key, &m.mask.0);
    let target = (u128::from_be_bytes(k.nd_target), u128::from_be_bytes(mask.nd_target));
    let sha = (mac(&k.arp_sha), mac(&mask.arp_sha));
    let tha = (mac(&k.arp_tha), mac(&mask.arp_tha));
    let type_known = mask.tp_src.get() & 0xff == 0xff;
    let icmpv6 = l3 == L3::Ipv6 && l4 == L4::Icmp;
    if icmpv6 && type_known && is_neighbour_discovery(k.tp_src.get()) {
        return refuse("icmpv6.type", FieldCause::NotParsed);
    }
    if l3 == L3::Arp {
        b.want(Field::ArpSha, "arp.sha", sha.0, sha.1);
        b.want(Field::ArpTha, "arp.tha", tha.0, tha.1);
        return must_be_zero("nd.target", target.0, target.1);
    }
    for (name, (value, bits)) in [("nd.target", target), ("nd.sll", sha), ("nd.tll", tha)] {
        match (l3, l4) {
            (L3::Any, _) if bits != 0 => return refuse(name, FieldCause::Needs("eth_type")),
            (L3::Ipv6, L4::Any) if bits != 0 => return refuse(name, FieldCause::Needs("ipv6.proto")),
            (L3::Ipv6, L4::Icmp) if bits != 0 && !type_known => return refuse(name, FieldCause::NotParsed),
            _ => must_be_zero(name, value, bits)?,
        }
    }
    Ok(())
}

/// Everything else in the key: nothing that a NIC's packet can have, so the flow must not ask for it.
fn constants(m: &Match, l3: L3) -> Result<(), Cause> {
    let (key, mask) = (m.key.words(), m.mask.0.words());
    let words = METADATA_WORDS.chain(FIRST_CONSTANT_WORD..mask.len());
    for word in words.filter(|w| mask[*w] != 0) {
        let (value, bits) = (key[word].to_ne_bytes(), mask[word].to_ne_bytes());
        for byte in (0..8).filter(|n| bits[*n] != 0) {
            let (name, known) = part_of(8 * word + byte);
            let asks = value[byte] & bits[byte] != 0;
            match known {
                Known::Zero if asks => return refuse(name, FieldCause::NeverFromNic),
                Known::Padding if asks => return refuse(name, FieldCause::Impossible),
                Known::Mpls | Known::Nsh | Known::ExtHdrs if asks => {
                    return refuse(name, FieldCause::NotParsed);
                }
                // Without an exact Ethernet type such a packet could be meant, and a table does not look.
                Known::Mpls | Known::Nsh if l3 == L3::Any => {
                    return refuse(name, FieldCause::Needs("eth_type"));
                }
                Known::ExtHdrs if l3 == L3::Any => return refuse(name, FieldCause::Needs("eth_type")),
                Known::ExtHdrs if l3 == L3::Ipv6 && m.mask.0.ip_proto != 0xff => {
                    return refuse(name, FieldCause::Needs("ipv6.proto"));
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Puts the wants into a table's layout. `key` and `mask` have the table's length and are zero.
pub(crate) fn fit(table: &TableCaps, wants: &[Want], key: &mut [u8], mask: &mut [u8]) -> Result<(), Cause> {
    for w in wants {
        let Some(caps) = field_of(table, w.field) else {
            if let Some(other) = w.instead.and_then(|f| field_of(table, f)) {
                if !write(mask, other, all_bits(other.width)) {
                    return refuse(w.name, FieldCause::NotInTable(w.field));
                }
                continue;
            }
            return refuse(w.name, FieldCause::NotInTable(w.field));
        };
        let all = all_bits(caps.width);
        // A narrower field of the NIC has no room for the upper bits, and no packet in its tables that has them.
        let beyond = w.mask & !all;
        if w.value & beyond != 0 {
            return refuse(w.name, FieldCause::NotInTable(w.field));
        }
        let exact = w.mask & all;
        let bits = [exact, exact | w.free & all].into_iter().find(|bits| takes(caps.kind, caps.width, *bits));
        let Some(bits) = bits else {
            return refuse(w.name, FieldCause::MaskNotTaken(caps.kind));
        };
        if !write(key, caps, w.value) || !write(mask, caps, bits) {
            return refuse(w.name, FieldCause::NotInTable(w.field));
        }
    }
    Ok(())
}
