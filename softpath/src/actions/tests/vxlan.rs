//! tnl_push of VXLAN, against the frame that was written by hand for the reference NIC.

use super::*;
use flowlift_flow::text::{NoNames, parse_actions};

const GOLDEN: &str = include_str!("../../../../fixtures/device/golden/frame_vxlan.hex");

fn golden() -> Vec<u8> {
    let lines = GOLDEN.lines().map(|line| line.split('#').next().unwrap_or(""));
    let hex = lines.flat_map(str::split_whitespace);
    hex.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn actions(src_port: u16, behind: &str) -> Vec<Action> {
    let text = format!(
        "tnl_push(tnl_port(4),header(size=50,type=4,eth(dst=02:00:00:00:09:09,src=02:00:00:00:01:01,dl_type=0x0800),\
         ipv4(src=192.0.2.1,dst=192.0.2.9,proto=17,tos=0,ttl=64,frag=0x4000),udp(src={src_port},dst=4789,csum=0x0),\
         vxlan(flags=0x8000000,vni=0x123456)),out_port(9)){behind}"
    );
    parse_actions(&text, &NoNames).unwrap()
}

#[test]
fn outer_headers_are_those_of_the_golden_frame() {
    let want = golden();
    assert_eq!(after(&want[50..], &actions(0xe96a, "")), want);
}

#[test]
fn a_source_port_that_is_left_open_is_the_flow_s_and_open_vswitch_s() {
    let golden = golden();
    let port = |inner: &[u8]| {
        let out = after(inner, &actions(0, ""));
        assert_eq!((&out[..34], &out[36..]), (&golden[..34], &[&golden[36..50], inner].concat()[..]));
        u16::from_be_bytes([out[34], out[35]])
    };
    let mut inner = golden[50..].to_vec();
    let first = port(&inner);
    inner[22] -= 1;
    assert_eq!(port(&inner), first, "another packet of the same flow");
    let mut seen = std::collections::BTreeSet::new();
    for n in 0..64 {
        inner[35] = n;
        seen.insert(port(&inner));
    }
    assert!(seen.len() > 50 && seen.iter().all(|p| (32_768..61_000).contains(p)), "{seen:?}");
}

/// What ovs-vswitchd 3.1.0 with DPDK sends for its VXLAN port to 192.0.2.9 with key 0x1234 (recorded by tests/dpdk/vswitch.py's `tunnel`,
/// by `software.hex()`), but for the inner frame's end, 100 times `x`.
const OVS: &str = "020000000909829ebde75a450800450000b2000040004011b630c0000201c0000209e0ca12b5009e00000800000000123400\
    020000000002020000000001080045000080000000004011666b0a0000010a00000200050035006c0000";

#[test]
fn the_frame_is_open_vswitch_s_own_source_port_included() {
    let digits = OVS.as_bytes().chunks(2).map(|c| std::str::from_utf8(c).unwrap());
    let mut want: Vec<u8> = digits.map(|c| u8::from_str_radix(c, 16).unwrap()).collect();
    want.extend([b'x'; 100]);
    let text = "tnl_push(tnl_port(4),header(size=50,type=4,eth(dst=02:00:00:00:09:09,src=82:9e:bd:e7:5a:45,dl_type=0x0800),\
        ipv4(src=192.0.2.1,dst=192.0.2.9,proto=17,tos=0,ttl=64,frag=0x4000),udp(src=0,dst=4789,csum=0x0),\
        vxlan(flags=0x8000000,vni=0x1234)),out_port(9))";
    assert_eq!(after(&want[50..], &parse_actions(text, &NoNames).unwrap()), want);
}

#[test]
fn a_clone_keeps_the_outer_headers_for_itself_and_tags_go_outside() {
    let want = golden();
    let mut list = vec![Action::Clone(actions(0xe96a, ",push_vlan(vid=5,pcp=0),1"))];
    list.push(Action::Output(PortNo(2)));
    let mut tagged = want.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(run(&want[50..], &list), [Did::Output(1, tagged), Did::Output(2, want[50..].to_vec())]);
}

#[test]
fn what_cannot_be_wrapped_is_dropped_and_what_would_look_inside_is_refused() {
    let long = vec![0; 65_500];
    let mut list = actions(1, "");
    list.push(Action::Output(PortNo(1)));
    assert_eq!(run(&long, &list), [Did::Dropped(DropReason::PushTunnel)]);
    let longest = after(&long[1..], &actions(1, ""));
    assert_eq!((longest.len(), &longest[16..18]), (65_549, &[0xff, 0xff][..]));
    for (behind, name) in
        [("set(ipv4(ttl=3))", "set"), ("dec_ttl(le_1(drop))", "dec_ttl"), ("recirc(0x1)", "recirc")]
    {
        let list = actions(0, &format!(",{behind}"));
        assert_eq!(compile(&list), Err(Unsupported::BehindTunnel(name)));
    }
    let text = "tnl_push(tnl_port(4),header(size=42,type=3,eth(dst=02:00:00:00:09:09,src=02:00:00:00:01:01,dl_type=0x0800),\
         ipv4(src=192.0.2.1,dst=192.0.2.9,proto=47,tos=0,ttl=64,frag=0x4000),gre((flags=0x0,proto=0x6558))),out_port(9)),1";
    assert_eq!(compile(&parse_actions(text, &NoNames).unwrap()), Err(Unsupported::Action("tnl_push")));
}
