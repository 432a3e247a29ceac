//! Which actions, on which frames.

use flowlift_flow::key::{eth_type, ip_proto};
use flowlift_flow::{Frag, Key, Metadata};
use flowlift_softpath::extract::{KeyBuf, Layers, extract};

/// A frame, and what it looks like to the softpath.
pub struct Seen {
    pub name: String,
    pub bytes: Vec<u8>,
    pub key: Key,
    pub layers: Layers,
}

impl Seen {
    pub fn new(name: String, bytes: Vec<u8>) -> Self {
        let mut key = KeyBuf::new();
        let layers = extract(&bytes, &Metadata { in_port: 1, ..Metadata::default() }, &mut key);
        Self { name, key: key.key().clone(), layers, bytes }
    }

    /// A flow of ours can be written for it: it is long enough for a port, and no tag is cut off.
    pub fn matchable(&self) -> bool {
        self.bytes.len() >= 14 && self.key.eth_type.get() >= 0x0600 && self.key.vlan.iter().all(|tag| tag.tpid.get() == 0 || tag.tci.get() != 0)
    }

    /// A match for Ethernet types and tags.
    pub fn matching(&self) -> String {
        let eth_type = self.key.eth_type.get();
        let empty = match eth_type {
            eth_type::IPV4 => ",ipv4()",
            eth_type::IPV6 => ",ipv6()",
            eth_type::ARP | eth_type::RARP => ",arp()",
            eth_type::MPLS | eth_type::MPLS_MCAST => ",mpls()",
            eth_type::NSH => ",nsh()",
            _ => "",
        };
        let inner = format!("eth_type({eth_type:#06x}){empty}");
        self.key.vlan.iter().filter(|tag| tag.tpid.get() != 0).rev().fold(inner, |inner, tag| {
            let (tpid, tci) = (tag.tpid.get(), tag.tci.get());
            format!("eth_type({tpid:#06x}),vlan(vid={},pcp={}),encap({inner})", tci & 0xfff, tci >> 13)
        })
    }

    /// The datapath hash after these actions.
    pub fn dp_hash(&self, _actions: &str) -> String {
        String::new()
    }

    fn is(&self, eth_type: u16) -> bool {
        self.key.eth_type.get() == eth_type
    }

    /// At least this many bytes from the L3 header on.
    fn l3_bytes(&self, len: usize) -> bool {
        self.layers.l3().is_some_and(|l3| self.bytes.len() >= l3 + len)
    }

    fn l4(&self, proto: u8) -> bool {
        self.key.is_ip() && self.key.ip_proto == proto && self.layers.frag != Frag::Later
    }
}

/// A list of actions to compare.
pub struct Case {
    pub actions: &'static str,
    /// Flows for recirculated packets.
    pub recirculated: &'static [(&'static str, &'static str)],
    pub frames: fn(&Seen) -> bool,
}

/// Any frame.
fn any(_: &Seen) -> bool {
    true
}

/// Open vSwitch sets an IPv4 header wherever the Ethernet type announces one, and writes past the end of a frame that is
/// too short for it.
fn ipv4(frame: &Seen) -> bool {
    frame.is(eth_type::IPV4) && frame.l3_bytes(20)
}

fn ipv6(frame: &Seen) -> bool {
    frame.is(eth_type::IPV6) && frame.l3_bytes(40) && frame.layers.l4().is_some()
}

fn arp(frame: &Seen) -> bool {
    (frame.is(eth_type::ARP) || frame.is(eth_type::RARP)) && frame.l3_bytes(28)
}

fn tcp(frame: &Seen) -> bool {
    frame.l4(ip_proto::TCP)
}

fn udp(frame: &Seen) -> bool {
    frame.l4(ip_proto::UDP)
}

fn sctp(frame: &Seen) -> bool {
    frame.l4(ip_proto::SCTP)
}

fn icmp(frame: &Seen) -> bool {
    frame.is(eth_type::IPV4) && frame.l4(ip_proto::ICMP)
}

fn icmpv6(frame: &Seen) -> bool {
    frame.is(eth_type::IPV6) && frame.l4(ip_proto::ICMPV6)
}

fn nd(frame: &Seen) -> bool {
    icmpv6(frame) && matches!(frame.key.tp_src.get(), 135 | 136) && frame.key.tp_dst.get() == 0
}

/// A label stack whose first entry is whole.
fn mpls(frame: &Seen) -> bool {
    frame.key.is_mpls() && frame.bytes.len() >= usize::from(frame.layers.l2_len) + 4
}

fn nsh(frame: &Seen) -> bool {
    frame.is(eth_type::NSH) && frame.l3_bytes(8)
}

const fn case(frames: fn(&Seen) -> bool, actions: &'static str) -> Case {
    Case { actions, recirculated: &[], frames }
}

/// All cases.
pub fn all() -> Vec<Case> {
    let mut cases = vec![
        case(any, "2"),
        case(any, "2,3,4"),
        case(any, "set(eth(src=0a:00:00:00:00:0a,dst=0b:00:00:00:00:0b)),2"),
        case(any, "set(eth(src=0a:00:00:00:00:0a/ff:00:00:00:00:0f)),2,set(eth(dst=0b:00:00:00:00:0b)),3"),
        case(any, "push_vlan(vid=7,pcp=3),2"),
        case(any, "push_vlan(tpid=0x88a8,vid=4095,pcp=7),push_vlan(vid=1,pcp=0),2,pop_vlan,3,pop_vlan,4"),
        case(any, "pop_vlan,2"),
        case(any, "pop_vlan,2,pop_vlan,3,pop_vlan,4"),
        case(any, "trunc(20),2,3"),
        case(any, "trunc(64),push_vlan(vid=7,pcp=3),2,3"),
        case(any, "trunc(100),pop_vlan,2"),
        case(any, "trunc(30),clone(2,3),4"),
        case(any, "trunc(30),clone(push_vlan(vid=7,pcp=3),2),4"),
        case(any, "trunc(30),sample(sample=100.0%,actions(2)),4"),
        case(any, "trunc(60),check_pkt_len(size=60,gt(2),le(3)),4"),
        case(any, "clone(push_vlan(vid=7,pcp=3),2),3,clone(clone(pop_vlan,2),3)"),
        case(any, "sample(sample=100.0%,actions(push_vlan(vid=7,pcp=3),2)),3"),
        case(any, "sample(sample=0.0%,actions(2)),3"),
        case(any, "check_pkt_len(size=80,gt(2),le(3))"),
        case(any, "check_pkt_len(size=60,gt(push_vlan(vid=7,pcp=3),2),le(pop_vlan,3)),4"),
        case(any, "check_pkt_len(size=59,gt(trunc(59),2),le(drop)),4"),
        case(any, "push_vlan(vid=7,pcp=3),check_pkt_len(size=64,gt(2),le(3))"),
        case(any, "ct_clear,2"),
        case(any, "pop_eth,push_eth(src=0a:00:00:00:00:0a,dst=0b:00:00:00:00:0b),2"),
        case(any, "push_mpls(label=5,tc=1,ttl=9,bos=1,eth_type=0x8847),2"),
        case(any, "push_mpls(label=5,tc=1,ttl=9,bos=1,eth_type=0x8848),push_vlan(vid=7,pcp=3),push_mpls(label=6,tc=0,ttl=0,bos=0,eth_type=0x8847),2"),
        case(any, "push_nsh(flags=1,ttl=63,mdtype=1,np=3,spi=0x123456,si=255,c1=0x1,c2=0x2,c3=0x3,c4=0xffffffff),push_eth(src=0a:00:00:00:00:0a,dst=0b:00:00:00:00:0b),2"),
        case(any, "push_nsh(flags=0,ttl=1,mdtype=2,np=3,spi=0x1,si=2,md2=0x10000a041234567820001408fedcba9876543210),push_eth(src=0a:00:00:00:00:0a,dst=0b:00:00:00:00:0b),2"),
        case(ipv4, "set(ipv4(src=203.0.113.9,dst=203.0.113.77,proto=6,tos=0xfc,ttl=3,frag=no)),2"),
        case(ipv4, "set(ipv4(src=203.0.113.9)),2"),
        case(ipv4, "set(ipv4(dst=203.0.113.9/255.0.0.255)),2"),
        case(ipv4, "set(ipv4(ttl=63)),2,set(ipv4(tos=0x10/0xfc)),3,set(ipv4(src=0.0.0.0,dst=255.255.255.255)),4"),
        case(ipv4, "set(ipv4(src=192.0.2.1,dst=198.51.100.2,tos=0x28,ttl=64)),2"),
        case(ipv4, "push_vlan(vid=7,pcp=3),set(ipv4(src=203.0.113.9)),2,pop_vlan,pop_vlan,set(ipv4(dst=203.0.113.9)),3"),
        case(ipv6, "set(ipv6(src=2001:db8::a,dst=2001:db8::b,label=0x54321,proto=6,tclass=0x70,hlimit=5,frag=no)),2"),
        case(ipv6, "set(ipv6(src=2001:db8::a)),2"),
        case(ipv6, "set(ipv6(dst=2001:db8::b/ffff:ffff::ffff)),2"),
        case(ipv6, "set(ipv6(label=0x12000/0xff000,hlimit=1)),2,set(ipv6(tclass=0x3/0x3)),3"),
        case(tcp, "set(tcp(src=1,dst=65535)),2"),
        case(tcp, "set(tcp(dst=443)),2,set(tcp(src=0x1200/0xff00)),3"),
        case(udp, "set(udp(src=1,dst=65535)),2"),
        case(udp, "set(udp(dst=443)),2,set(udp(src=0x1200/0xff00)),3"),
        case(sctp, "set(sctp(src=1,dst=65535)),2"),
        case(sctp, "set(sctp(dst=443)),2,set(sctp(src=0x1200/0xff00)),3"),
        case(icmp, "set(icmp(type=0,code=1)),2"),
        case(icmpv6, "set(icmpv6(type=129,code=255)),2"),
        case(nd, "set(nd(target=2001:db8::c,sll=0c:00:00:00:00:0c,tll=0d:00:00:00:00:0d)),2"),
        case(nd, "set(nd(target=2001:db8::c)),2,set(nd(sll=0c:00:00:00:00:0c)),3,set(nd(tll=0d:00:00:00:00:0d/ff:ff:00:00:00:00)),4"),
        case(arp, "set(arp(sip=203.0.113.1,tip=203.0.113.2,op=2,sha=0c:00:00:00:00:0c,tha=0d:00:00:00:00:0d)),2"),
        case(arp, "set(arp(sip=203.0.0.0/255.255.0.0,op=2)),2,set(arp(tha=0d:00:00:00:00:0d)),3"),
        case(mpls, "pop_mpls(eth_type=0x800),2"),
        case(mpls, "pop_mpls(eth_type=0x8847),2,pop_mpls(eth_type=0x86dd),3"),
        case(mpls, "set(mpls(label=77,tc=7,ttl=1,bos=1)),2"),
        case(mpls, "set(mpls(label=77,ttl=1)),2,push_mpls(label=5,tc=1,ttl=9,bos=0,eth_type=0x8848),3,pop_mpls(eth_type=0x8847),4"),
        case(nsh, "set(nsh(flags=2,ttl=5,spi=0x123,si=9)),2"),
    ];
    cases.push(Case {
        actions: "push_vlan(vid=7,pcp=3),recirc(1)",
        recirculated: &[("recirc_id(1),in_port(1),eth(),eth_type(0x8100),vlan(vid=7,pcp=3),encap({})", "pop_vlan,2")],
        frames: |frame| frame.key.vlan[1].tpid.get() == 0,
    });
    cases
}
