//! Any bytes as a frame: the fast and the general path give the same key, the layers lie within the frame and agree with
//! the key, the key's text reads back, and a random list of actions does no harm, recirculation included.
//!
//! The input is a byte with the number of actions, one byte for each, and the frame.
#![no_main]

use flowlift_flow::text::{NoNames, key_text, parse_actions, parse_key};
use flowlift_flow::{Action, Frag, Key, Metadata, PortNo};
use flowlift_softpath::Packet;
use flowlift_softpath::actions::{ActionUpcall, Context, DropReason, Sink, compile, execute};
use flowlift_softpath::extract::{KeyBuf, Layers, extract, extract_packet, general_path};
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

const IN_PORT: Metadata = Metadata { in_port: 1, recirc_id: 0, dp_hash: 0, skb_priority: 0, skb_mark: 0 };
/// Recirculations of one packet.
const MAX_DEPTH: usize = 4;

/// What programs are made of.
static ACTIONS: LazyLock<Vec<Action>> = LazyLock::new(|| {
    let texts = [
        "1",
        "trunc(20),2",
        "trunc(64)",
        "userspace(pid=1)",
        "recirc(1)",
        "clone(pop_vlan,recirc(2))",
        "sample(sample=50.0%,actions(push_vlan(vid=1,pcp=1),3))",
        "check_pkt_len(size=60,gt(pop_eth,recirc(3)),le(push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),4))",
        "push_vlan(vid=7,pcp=3)",
        "push_vlan(tpid=0x88a8,vid=8,pcp=0)",
        "pop_vlan",
        "push_mpls(label=5,tc=1,ttl=9,bos=1,eth_type=0x8847)",
        "add_mpls(label=5,tc=1,ttl=9,bos=1,eth_type=0x8847)",
        "pop_mpls(eth_type=0x800)",
        "pop_mpls(eth_type=0x8847)",
        "pop_mpls(eth_type=0x6558)",
        "push_eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)",
        "pop_eth",
        "push_nsh(flags=0,ttl=63,mdtype=1,np=3,spi=0x1,si=255,c1=0x1,c2=0x2,c3=0x3,c4=0x4)",
        "pop_nsh()",
        "hash(l4(0))",
        "hash(sym_l4(1))",
        "dec_ttl(le_1(1))",
        "set(eth(src=0a:00:00:00:00:0a/ff:00:00:00:00:0f))",
        "set(ipv4(src=203.0.113.9,dst=203.0.113.77,tos=0x10/0xfc,ttl=3))",
        "set(ipv6(src=2001:db8::a,dst=2001:db8::b,label=0x12000/0xff000,tclass=0x3/0x3,hlimit=5))",
        "set(tcp(src=1,dst=65535))",
        "set(udp(src=1,dst=65535))",
        "set(sctp(src=1,dst=65535))",
        "set(icmp(type=0,code=1))",
        "set(icmpv6(type=129,code=255))",
        "set(nd(target=2001:db8::c,sll=0c:00:00:00:00:0c,tll=0d:00:00:00:00:0d))",
        "set(arp(sip=203.0.113.1,tip=203.0.113.2,op=2,sha=0c:00:00:00:00:0c,tha=0d:00:00:00:00:0d))",
        "set(mpls(label=99,tc=1,ttl=2,bos=1))",
        "set(nsh(flags=1,ttl=2,spi=0x3,si=4,c1=0x5,c2=0x6,c3=0x7,c4=0x8))",
        "set(skb_mark(0x5/0xf)),set(skb_priority(7))",
        "drop",
    ];
    texts
        .iter()
        .flat_map(|text| parse_actions(text, &NoNames).unwrap_or_else(|e| panic!("{text}: {e}")))
        .collect()
});

fuzz_target!(|data: &[u8]| {
    let Some((&count, rest)) = data.split_first() else { return };
    let Some((picks, frame)) = rest.split_at_checked(usize::from(count % 16)) else { return };
    let mut key = KeyBuf::new();
    let layers = extract(frame, &IN_PORT, &mut key);
    let mut general = KeyBuf::new();
    let same = general_path(frame, &IN_PORT, &mut general);
    assert_eq!((key.key(), layers), (general.key(), same), "fast and general path differ");
    consistent(frame.len(), key.key(), &layers);

    let text = key_text(key.key()).to_string();
    if let Err(error) = parse_key(&text) {
        panic!("the key printed as {text}: {error}");
    }

    let actions: Vec<_> =
        picks.iter().filter_map(|n| ACTIONS.get(usize::from(*n) % ACTIONS.len())).cloned().collect();
    let program = compile(&actions).unwrap_or_else(|e| panic!("{actions:?}: {e}"));
    let mut packet = Packet::new();
    packet.fill(frame, IN_PORT);
    let mut run = Run { program: &program, depth: 0 };
    execute(&program, &mut packet, key.key(), &layers, &mut Context::new(1), &mut run);
});

/// Headers lie within the frame and in order, and are those that the key speaks of.
fn consistent(len: usize, key: &Key, layers: &Layers) {
    let (l2, end) = (usize::from(layers.l2_len), layers.end as usize);
    assert!(l2 <= len && end <= len, "{layers:?} of {len} bytes");
    assert!(layers.l3().is_none_or(|l3| l2 <= l3 && l3 <= len), "{layers:?} of {len} bytes");
    let in_order = |l4| layers.l3().is_some_and(|l3| l3 < l4) && l4 <= end;
    assert!(layers.l4().is_none_or(in_order), "{layers:?} of {len} bytes");
    assert_eq!(layers.frag as u8, key.ip_frag);
    assert!(layers.l2_5().is_none() || key.is_mpls(), "{layers:?} of {key:?}");
    if layers.l4_complete() {
        assert!(key.is_ip() && layers.l4().is_some() && layers.frag != Frag::Later, "{layers:?} of {key:?}");
    } else {
        assert_eq!((key.tp_src.get(), key.tp_dst.get(), key.tcp_flags.get()), (0, 0, 0), "{layers:?}");
    }
}

/// Runs the program again on what it recirculates.
struct Run<'p> {
    program: &'p flowlift_softpath::actions::Program,
    depth: usize,
}

impl Sink for Run<'_> {
    fn output(&mut self, _: PortNo, _: &[u8]) {}

    fn upcall(&mut self, _: ActionUpcall<'_>) {}

    fn recirc(&mut self, context: &mut Context, packet: &mut Packet) {
        if self.depth == MAX_DEPTH {
            return;
        }
        let mut key = KeyBuf::new();
        let layers = extract_packet(packet, &mut key);
        consistent(packet.len(), key.key(), &layers);
        self.depth += 1;
        execute(self.program, packet, key.key(), &layers, context, self);
        self.depth -= 1;
    }

    fn dropped(&mut self, _: DropReason) {}
}
