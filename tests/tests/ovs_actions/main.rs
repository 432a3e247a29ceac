//! The softpath's actions against Open vSwitch's own user-space datapath (Debian's): the same flows, the same frames, the
//! same bytes out of the same ports.
//!
//! Each [`cases::Case`] is a list of actions in OVS's text form, with the flows that its recirculations meet, and a choice of
//! frames. Every frame of the choice gets a flow that matches its Ethernet types and tags; both datapaths get that text.
//! [`DIFFERENCES`] names each difference that is meant, and the test fails if one of them no longer occurs.

mod cases;
mod ours;

use cases::{Flows, Seen};
use flowlift_flow::text::{ActionsText, NoNames, parse_actions};
use flowlift_softpath::actions::{Unsupported, compile};
use flowlift_tests::frames;
use flowlift_tests::ovs::{Sent, Vswitch};
use std::collections::BTreeSet;
use std::path::Path;

/// A difference that is meant.
struct Difference {
    /// What OVS does, and why flowlift does not.
    why: &'static str,
    applies: fn(case: &str, frame: &Seen) -> bool,
}

const DIFFERENCES: [Difference; 5] = [
    Difference {
        why: "OVS 3.1 takes the payload of a later IPv4 fragment for an L4 header and, when an address changes, adds the \
              change to the two payload bytes where a checksum would be. A later fragment has no L4 header",
        applies: |case, frame| sets_address(case) && frame.is_later_ipv4_fragment(),
    },
    Difference {
        why: "OVS 3.1 takes an IPv6 atomic fragment (offset 0, no more fragments) for a later one and leaves the L4 \
              checksum as it was when an address changes, so that the receiver drops the packet",
        applies: |case, frame| {
            case.contains("ipv6(") && frame.has_extension(44, |header| header[2..4] == [0, 0])
        },
    },
    Difference {
        why: "OVS 3.1 stops at an active IPv6 routing header and leaves the L4 checksum as it was when the source \
              changes, which the pseudo-header covers in any case",
        applies: |case, frame| case.contains("ipv6(src") && frame.has_extension(43, |header| header[3] > 0),
    },
    Difference {
        why: "OVS 3.1 parses nothing of an IP packet whose length reaches past the frame, so it sets no L4 header and \
              updates no L4 checksum; here, as in the kernel, the packet is one that is cut off (R34)",
        applies: |_, frame| frame.is_cut_off(),
    },
    Difference {
        why: "The dummy ports of OVS send Ethernet frames only; what a port makes of a packet that add_mpls left without \
              an Ethernet header is the port's affair here",
        applies: |case, _| case.starts_with("add_mpls(") && !case.contains("push_eth("),
    },
];

/// The last of them.
const PORT_TYPE: usize = DIFFERENCES.len() - 1;

fn sets_address(case: &str) -> bool {
    ["ipv4(src", "ipv4(dst", "->ip_dst"].iter().any(|set| case.contains(set))
}

fn hex(bytes: &[u8]) -> String {
    bytes.chunks(2).map(|pair| pair.iter().map(|b| format!("{b:02x}")).collect::<String>() + " ").collect()
}

fn show(sent: &Sent) -> String {
    let line = |(port, frames): (&u32, &Vec<Vec<u8>>)| {
        frames
            .iter()
            .map(|f| format!("    port {port}, {} bytes: {}\n", f.len(), hex(&f[..f.len().min(160)])))
            .collect::<String>()
    };
    if sent.is_empty() { "    nothing\n".into() } else { sent.iter().map(line).collect() }
}

#[test]
fn actions_do_what_open_vswitch_does() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut all: Vec<Seen> = frames::all().into_iter().map(|f| Seen::new(f.name, f.bytes)).collect();
    for set in ["well-formed", "damaged"] {
        let oracle = root.join(format!("fixtures/packets/oracle/{set}.pcap"));
        for (i, bytes) in frames::read_pcap(&oracle).unwrap().into_iter().enumerate() {
            all.push(Seen::new(format!("{set}.pcap, packet {}", i + 1), bytes));
        }
    }

    let mut vswitch = Vswitch::start().unwrap();
    let mut met = vec![false; DIFFERENCES.len()];
    let mut bare = false;
    let (mut compared, mut wrong) = (0, Vec::new());
    for case in cases::all() {
        let name = case.name();
        let chosen: Vec<&Seen> = all.iter().filter(|frame| case.takes(frame)).collect();
        assert!(!chosen.is_empty(), "no frame for {name}");
        let bytes: Vec<&[u8]> = chosen.iter().map(|frame| &frame.bytes[..]).collect();
        let receive =
            |vswitch: &mut Vswitch| vswitch.receive(&bytes).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let (theirs, flows) = match &case.flows {
            Flows::Text { actions, recirculated } => {
                let flows = flows_of(actions, recirculated, &chosen);
                vswitch.set_flows(flows.iter().map(|(m, a)| (m.as_str(), a.as_str()))).unwrap();
                (receive(&mut vswitch), flows)
            }
            Flows::Rules { groups, rules } => {
                vswitch.set_rules(groups, rules).unwrap();
                (receive(&mut vswitch), vswitch.dump_flows().unwrap())
            }
        };
        bare |= flows.iter().any(|(matching, _)| matching.contains("packet_type(ns=1,id=0x800)"));
        let table = ours::Table::parse(&flows);
        let unsent = DIFFERENCES[PORT_TYPE].applies;
        assert!(
            theirs.iter().any(|sent| !sent.is_empty()) || unsent(&name, chosen[0]),
            "OVS sends nothing for {name}, whose flows are {flows:?}"
        );
        for (frame, theirs) in chosen.into_iter().zip(theirs) {
            compared += 1;
            let ours = table.run(&frame.bytes);
            if ours == theirs {
                continue;
            }
            match DIFFERENCES.iter().position(|d| (d.applies)(&name, frame)) {
                Some(known) => met[known] = true,
                None => wrong.push(format!(
                    "{name}\n  {}: {}\n  OVS sends\n{}  flowlift sends\n{}",
                    frame.name,
                    hex(&frame.bytes[..frame.bytes.len().min(160)]),
                    show(&theirs),
                    show(&ours)
                )),
            }
        }
    }
    let shown: Vec<_> = wrong.iter().step_by(wrong.len().div_ceil(12).max(1)).cloned().collect();
    assert!(wrong.is_empty(), "{} of {compared} frames differ; some:\n{}", wrong.len(), shown.join("\n"));
    assert!(bare, "no flow matched an IPv4 packet without an Ethernet header");
    for (difference, met) in DIFFERENCES.iter().zip(met) {
        assert!(met, "no longer a difference: {}", difference.why);
    }
    println!("{compared} frames compared, {} differences explained", DIFFERENCES.len());
}

/// A masked set with value bits outside its mask. As text, OVS takes and prints it as it is, and so does flowlift. Its
/// user-space datapath then sets those bits where they are 0, whatever the mask says; the kernel's refuses the flow (U8),
/// and so does flowlift: what vswitchd itself composes never has such bits.
#[test]
fn u8_value_bits_outside_a_mask_are_kept_as_text_and_refused_as_a_flow() {
    const ACTIONS: &str = "set(ipv4(dst=203.0.113.9/255.0.0.255)),2";
    let parsed = parse_actions(ACTIONS, &NoNames).unwrap();
    assert_eq!(ActionsText { actions: &parsed, names: None }.to_string(), ACTIONS);

    let mut vswitch = Vswitch::start().unwrap();
    let matching = "recirc_id(0),in_port(1),eth(),eth_type(0x0800),ipv4(frag=no)";
    vswitch.set_flows([(matching, ACTIONS)]).unwrap();
    let dumped = vswitch.dump_flows().unwrap();
    assert_eq!(dumped.iter().map(|(_, actions)| actions.as_str()).collect::<Vec<_>>(), [ACTIONS]);

    let frame =
        frames::all().into_iter().map(|f| Seen::new(f.name, f.bytes)).find(|f| f.is_plain_ipv4()).unwrap();
    let sent = vswitch.receive(&[&frame.bytes]).unwrap();
    let old = &frame.bytes[30..34];
    assert_eq!(sent[0][&2][0][30..34], [203, old[1], old[2] | 113, 9], "from {old:?}");

    let refused = compile(&parsed).unwrap_err();
    assert_eq!(refused, Unsupported::OutsideMask("ipv4"));
}

/// One flow per kind of frame, and those that recirculated packets meet.
fn flows_of(actions: &str, recirculated: &[(&str, &str)], chosen: &[&Seen]) -> Vec<(String, String)> {
    let kinds: BTreeSet<String> = chosen.iter().map(|frame| frame.matching()).collect();
    let mut flows = Vec::new();
    for kind in &kinds {
        flows.push((format!("recirc_id(0),in_port(1),eth(),{kind}"), actions.to_string()));
        flows.extend(
            recirculated.iter().map(|(matching, then)| (matching.replace("{}", kind), then.to_string())),
        );
    }
    flows
}
