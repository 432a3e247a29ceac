//! Which actions, on which frames.

use flowlift_flow::key::{eth_type, ip_proto};
use flowlift_flow::{Frag, Key, Metadata};
use flowlift_softpath::extract::{KeyBuf, Layers, extract};

/// A frame, and what it looks like to the softpath.
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) key: Key,
    pub(crate) layers: Layers,
}

impl Seen {
    pub(crate) fn new(name: String, bytes: Vec<u8>) -> Self {
        let mut key = KeyBuf::new();
        let layers = extract(&bytes, &Metadata { in_port: 1, ..Metadata::default() }, &mut key);
        Self { name, key: key.key().clone(), layers, bytes }
    }

    /// No tag is cut off, and there is an Ethernet type.
    fn is_matchable(&self) -> bool {
        self.key.eth_type.get() >= 0x0600
            && self.key.vlan.iter().all(|tag| tag.tpid.get() == 0 || tag.tci.get() != 0)
    }

    /// A flow for it can be entered as text: Debian's OVS does not take label stacks and NSH this way.
    fn has_text(&self) -> bool {
        self.is_matchable() && !self.key.is_mpls() && !self.is(eth_type::NSH)
    }

    /// An untagged IPv4 packet without options.
    pub(crate) fn is_plain_ipv4(&self) -> bool {
        self.is(eth_type::IPV4) && self.layers.l3() == Some(14) && self.layers.l4() == Some(34)
    }

    /// A match for Ethernet types and tags.
    pub(crate) fn matching(&self) -> String {
        let eth_type = self.key.eth_type.get();
        let empty = match eth_type {
            eth_type::IPV4 => ",ipv4()",
            eth_type::IPV6 => ",ipv6()",
            eth_type::ARP | eth_type::RARP => ",arp()",
            _ => "",
        };
        let inner = format!("eth_type({eth_type:#06x}){empty}");
        self.key.vlan.iter().filter(|tag| tag.tpid.get() != 0).rev().fold(inner, |inner, tag| {
            let (tpid, tci) = (tag.tpid.get(), tag.tci.get());
            format!("eth_type({tpid:#06x}),vlan(vid={},pcp={}),encap({inner})", tci & 0xfff, tci >> 13)
        })
    }

    /// An IP packet that is longer than the frame by its own account.
    pub(crate) fn is_cut_off(&self) -> bool {
        let Some(l3) = self.layers.l3().map(|l3| &self.bytes[l3..]) else { return false };
        let word =
            |at: usize| l3.get(at..at + 2).map_or(0, |w| usize::from(u16::from_be_bytes([w[0], w[1]])));
        self.is(eth_type::IPV4) && word(2) > l3.len() || self.is(eth_type::IPV6) && 40 + word(4) > l3.len()
    }

    /// A later fragment, also behind a label stack.
    pub(crate) fn is_later_ipv4_fragment(&self) -> bool {
        let header = self.layers.l3().and_then(|l3| self.bytes.get(l3..l3 + 20));
        let ipv4 = self.is(eth_type::IPV4) || self.key.is_mpls();
        ipv4 && header.is_some_and(|h| h[0] >> 4 == 4 && u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0)
    }

    /// An IPv6 extension header of this number, of which `is` is true, stands ahead of the L4 header.
    pub(crate) fn has_extension(&self, number: u8, is: fn(&[u8]) -> bool) -> bool {
        let (Some(l3), Some(l4)) = (self.layers.l3(), self.layers.l4()) else { return false };
        if !self.is(eth_type::IPV6) {
            return false;
        }
        let (mut next, mut at) = (self.bytes[l3 + 6], l3 + 40);
        while at + 8 <= l4 {
            let header = &self.bytes[at..l4];
            if next == number && is(header) {
                return true;
            }
            at += match next {
                44 => 8,
                51 => (usize::from(header[1]) + 2) * 4,
                _ => (usize::from(header[1]) + 1) * 8,
            };
            next = header[0];
        }
        false
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

/// How OVS gets the flows.
pub(crate) enum Flows {
    /// As text: actions for each kind of frame, and what recirculated packets meet (`{}` stands for the match of the
    /// frame's kind).
    Text { actions: &'static str, recirculated: &'static [(&'static str, &'static str)] },
    /// From OpenFlow rules, for actions that OVS prints but does not take as text. What it then has in its datapath is
    /// given to flowlift.
    Rules { groups: &'static [&'static str], rules: &'static [&'static str] },
}

/// Flows to compare, and on which frames.
pub(crate) struct Case {
    pub(crate) flows: Flows,
    frames: fn(&Seen) -> bool,
}

impl Case {
    /// What it does.
    pub(crate) fn name(&self) -> String {
        match &self.flows {
            Flows::Text { actions, .. } => actions.to_string(),
            Flows::Rules { rules, .. } => rules.join("; "),
        }
    }

    pub(crate) fn takes(&self, frame: &Seen) -> bool {
        let possible = match self.flows {
            Flows::Text { .. } => frame.has_text(),
            Flows::Rules { .. } => frame.is_matchable(),
        };
        possible && frame.bytes.len() >= 14 && (self.frames)(frame)
    }
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
    Case { flows: Flows::Text { actions, recirculated: &[] }, frames }
}

/// All cases.
pub(crate) fn all() -> Vec<Case> {
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
        case(any, "add_mpls(label=200,tc=7,ttl=64,bos=1,eth_type=0x8847),2"),
        // A packet for the user goes its way unseen here; the others must be as if it had not been.
        case(any, "userspace(pid=1),2"),
        case(any, "push_vlan(vid=7,pcp=3),userspace(pid=1,userdata(00)),2,pop_vlan,3"),
        case(any, "trunc(30),userspace(pid=1),2"),
        case(ipv4, "set(ipv4(src=203.0.113.9,dst=203.0.113.77,proto=6,tos=0xfc,ttl=3,frag=no)),2"),
        case(ipv4, "set(ipv4(src=203.0.113.9)),2"),
        case(ipv4, "set(ipv4(dst=203.0.0.9/255.0.0.255)),2"),
        case(
            ipv4,
            "set(ipv4(ttl=63)),2,set(ipv4(tos=0x10/0xfc)),3,set(ipv4(src=0.0.0.0,dst=255.255.255.255)),4",
        ),
        case(ipv4, "set(ipv4(src=192.0.2.1,dst=198.51.100.2,tos=0x28,ttl=64)),2"),
        case(
            ipv4,
            "push_vlan(vid=7,pcp=3),set(ipv4(src=203.0.113.9)),2,pop_vlan,pop_vlan,set(ipv4(dst=203.0.113.9)),3",
        ),
        case(
            ipv6,
            "set(ipv6(src=2001:db8::a,dst=2001:db8::b,label=0x54321,proto=6,tclass=0x70,hlimit=5,frag=no)),2",
        ),
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
        case(
            nd,
            "set(nd(target=2001:db8::c)),2,set(nd(sll=0c:00:00:00:00:0c)),3,set(nd(tll=0d:00:00:00:00:00/ff:ff:00:00:00:00)),4",
        ),
        case(
            arp,
            "set(arp(sip=203.0.113.1,tip=203.0.113.2,op=2,sha=0c:00:00:00:00:0c,tha=0d:00:00:00:00:0d)),2",
        ),
        case(arp, "set(arp(sip=203.0.0.0/255.255.0.0,op=2)),2,set(arp(tha=0d:00:00:00:00:0d)),3"),
    ];
    cases.push(Case {
        flows: Flows::Text {
            actions: "push_vlan(vid=7,pcp=3),recirc(1)",
            recirculated: &[
                (
                    "recirc_id(1),in_port(1),eth(),eth_type(0x8100),vlan(vid=7,pcp=3),encap({})",
                    "pop_vlan,2,recirc(2),3",
                ),
                ("recirc_id(2),in_port(1),eth(),{}", "push_vlan(vid=8,pcp=0),4"),
            ],
        },
        frames: |frame| frame.key.vlan[0].tpid.get() == 0,
    });
    cases.push(Case {
        flows: Flows::Text {
            actions: "set(skb_mark(0x5/0xf)),set(skb_priority(7)),recirc(1)",
            recirculated: &[("recirc_id(1),skb_priority(7),in_port(1),skb_mark(0x5),eth(),{}", "2")],
        },
        frames: any,
    });
    cases.extend(rules());
    cases
}

const fn rule(frames: fn(&Seen) -> bool, rules: &'static [&'static str]) -> Case {
    Case { flows: Flows::Rules { groups: &[], rules }, frames }
}

fn whole(frame: &Seen) -> bool {
    let damaged = ["damaged.pcap", " cut at", "off by", "length"];
    !damaged.iter().any(|mark| frame.name.contains(mark))
}

fn rules() -> Vec<Case> {
    const SELECT: &str = "group_id=1,type=select,bucket=weight:1,actions=output:2,bucket=weight:1,actions=output:3,bucket=weight:1,actions=output:4";
    vec![
        rule(
            whole,
            &["in_port=1,actions=push_mpls:0x8847,set_field:5->mpls_label,set_field:3->mpls_tc,output:2"],
        ),
        rule(
            whole,
            &[
                "in_port=1,actions=push_mpls:0x8848,set_field:5->mpls_label,push_mpls:0x8848,set_field:6->mpls_label,output:2,push_vlan:0x8100,set_field:4103->vlan_vid,output:3",
            ],
        ),
        rule(
            mpls,
            &[
                "in_port=1,dl_type=0x8847,actions=set_field:77->mpls_label,set_field:7->mpls_tc,output:2,set_mpls_ttl(9),output:3",
            ],
        ),
        rule(
            mpls,
            &[
                "in_port=1,dl_type=0x8847,mpls_bos=1,actions=pop_mpls:0x0800,output:2",
                "in_port=1,dl_type=0x8847,mpls_bos=0,actions=pop_mpls:0x8847,output:3",
            ],
        ),
        rule(
            mpls,
            &[
                "in_port=1,dl_type=0x8847,mpls_bos=1,actions=pop_mpls:0x0800,dec_ttl,set_field:203.0.113.5->ip_dst,output:2",
            ],
        ),
        rule(
            |f| whole(f) && f.key.is_ip(),
            &["in_port=1,ip,actions=dec_ttl,output:2", "in_port=1,ipv6,actions=dec_ttl,output:2"],
        ),
        Case {
            flows: Flows::Rules { groups: &[SELECT], rules: &["in_port=1,actions=group:1"] },
            frames: whole,
        },
        Case {
            flows: Flows::Rules {
                groups: &[
                    "group_id=1,type=select,selection_method=dp_hash,bucket=weight:1,actions=output:2,bucket=weight:9,actions=output:3",
                ],
                rules: &[
                    "in_port=1,ip,actions=set_field:203.0.113.5->ip_dst,group:1",
                    "in_port=1,actions=group:1",
                ],
            },
            frames: whole,
        },
        rule(|f| whole(f) && nsh(f), &["in_port=1,dl_type=0x894f,nsh_np=3,actions=decap(),decap(),output:2"]),
        rule(
            |f| whole(f) && nsh(f),
            &[
                "in_port=1,dl_type=0x894f,actions=set_field:0x1234->nsh_spi,set_field:7->nsh_si,set_field:5->nsh_ttl,set_field:0x11223344->nsh_c1,output:2",
            ],
        ),
        rule(
            whole,
            &[
                "in_port=1,actions=encap(nsh(md_type=2,tlv(0x1000,10,0x12345678))),set_field:0x1234->nsh_spi,encap(ethernet),output:2",
            ],
        ),
        rule(
            whole,
            &[
                "in_port=1,actions=encap(nsh(md_type=1)),set_field:0x1234->nsh_spi,set_field:0x11223344->nsh_c1,encap(ethernet),set_field:11:22:33:44:55:66->dl_dst,output:2",
            ],
        ),
        // A label ahead of the Ethernet header.
        rule(
            whole,
            &[
                "in_port=1,actions=encap(mpls),set_field:200->mpls_label,encap(ethernet),set_field:02:00:00:00:00:0b->dl_dst,output:2",
            ],
        ),
        // Recirculated without an Ethernet header.
        rule(
            |f| whole(f) && f.key.is_ip(),
            &[
                "in_port=1,ip,actions=decap(),encap(nsh(md_type=1)),decap(),encap(ethernet),set_field:11:22:33:44:55:66->dl_dst,output:2",
                "in_port=1,ipv6,actions=decap(),encap(nsh(md_type=1)),decap(),encap(ethernet),set_field:11:22:33:44:55:66->dl_dst,output:3",
            ],
        ),
    ]
}
