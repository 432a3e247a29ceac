//! Random matches and action trees, printed and parsed again; and the parser on texts that nobody printed.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which the lint takes for other code"
)]

mod actions;
mod matches;

use flowlift_flow::text::{
    ActionsText, DumpReader, MatchText, NoNames, PrintOptions, parse_actions, parse_dump_line, parse_key,
    parse_match, parse_ufid,
};
use flowlift_flow::{AttrSet, Match, Ufid};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use std::path::Path;

fn print(matching: &Match, verbose: bool) -> String {
    MatchText { matching, order: None, options: PrintOptions { names: None, verbose } }.to_string()
}

/// Lines of all recorded dumps.
fn recorded() -> Vec<String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/flows");
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(dir).expect("fixtures/flows exists") {
        let path = entry.expect("a directory entry").path();
        if path.extension().is_some_and(|e| e == "txt") {
            let text = std::fs::read_to_string(path).expect("a readable dump");
            lines.extend(text.lines().filter(|l| l.contains("actions:")).map(str::to_owned));
        }
    }
    lines.sort();
    lines.dedup();
    assert!(lines.len() > 100, "only {} recorded flows", lines.len());
    lines
}

/// Nothing but that it returns.
fn parse_all(text: &str) {
    let _ = parse_dump_line(text, &NoNames);
    let _ = parse_match(text, &NoNames);
    let _ = parse_key(text);
    let _ = parse_actions(text, &NoNames);
    let _ = parse_ufid(text);
    let _ = DumpReader::new(&NoNames).line(text);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn r20_a_verbose_match_reads_back_with_every_bit(m in matches::any_match()) {
        let text = print(&m, true);
        let (back, _) = parse_match(&text, &NoNames).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&back, &m, "{}", text);
        prop_assert_eq!(m.validate(), Ok(()), "{}", text);
    }

    #[test]
    fn u4_a_plain_match_reads_back_as_the_same_match(m in matches::any_match()) {
        let text = print(&m, false);
        prop_assume!(!text.is_empty());
        let (back, _) = parse_match(&text, &NoNames).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(back.mask.apply(&back.key), m.mask.apply(&m.key), "{}", text);
        prop_assert_eq!(&back.mask, &m.mask, "{}", text);
        prop_assert_eq!(print(&back, false), text);
    }

    #[test]
    fn a_match_of_bits_alone_names_what_it_takes(mut m in matches::any_match()) {
        m.key.packet_type = 0.into();
        let mut key = m.mask.apply(&m.key);
        // Which of ERSPAN's fields there are depends on its version, matched or not.
        key.tun_erspan_ver = m.key.tun_erspan_ver;
        let of = AttrSet::of(&key);
        // About every fourth is a key that a packet can have, with the headers that its fields lead to.
        let headers = (0..3).all(|l| m.attrs.level(l).all(|n| of.has(l, n) || [18, 29, 30].contains(&n)));
        if !headers || (0..3).any(|l| m.attrs.mpls_count(l) != of.mpls_count(l)) {
            return Ok(());
        }
        let named = Match::new(key, m.mask.clone());
        prop_assert_eq!(named.validate(), Ok(()));
        let text = print(&named, false);
        let (back, _) = parse_match(&text, &NoNames).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(&back.mask, &named.mask, "{}", text);
        prop_assert_eq!(back.mask.apply(&back.key), named.mask.apply(&named.key), "{}", text);
    }

    #[test]
    fn actions_read_back(list in actions::any_list()) {
        let text = ActionsText { actions: &list, names: None }.to_string();
        let back = parse_actions(&text, &NoNames).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(back, list, "{}", text);
    }

    #[test]
    fn u5_handles_of_1_to_16_octets_read_back(octets in prop::collection::vec(any::<u8>(), 1..=16)) {
        let ufid = Ufid::new(&octets).expect("1 to 16 octets");
        prop_assert_eq!(parse_ufid(&ufid.to_string()), Ok(ufid));
    }

    #[test]
    fn an_exact_match_of_a_key_matches_only_that_key(m in matches::any_match(), word in 0usize..72, bit in 0u32..64) {
        let exact = Match::exact(&m.key);
        prop_assert!(exact.matches(&m.key));
        let mut other = m.key.clone();
        other.words_mut()[word] ^= 1 << bit;
        let matched = exact.mask.0.words()[word] >> bit & 1 == 1;
        prop_assert_eq!(exact.matches(&other), !matched);
    }

    #[test]
    fn r22_overlap_is_what_some_key_that_both_match_shows(a in matches::any_match(), b in matches::any_match()) {
        // The key that is as `a` wants it, and as `b` wants it where `a` does not care, is matched by both or by none.
        let mut both = a.mask.apply(&a.key);
        let theirs = b.mask.apply(&b.key);
        let words = both.words_mut().iter_mut().zip(theirs.words()).zip(a.mask.0.words());
        words.for_each(|((w, t), mask)| *w |= t & !mask);
        prop_assert!(a.matches(&both));
        prop_assert_eq!(a.overlaps(&b), b.matches(&both));
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
    }

    #[test]
    fn any_text_returns(text in "\\PC{0,80}") {
        parse_all(&text);
    }

    #[test]
    fn texts_of_the_right_words_return(
        words in prop::collection::vec(prop::sample::select(WORDS.to_vec()), 1..24)
    ) {
        parse_all(&words.concat());
    }
}

const WORDS: &[&str] = &[
    "eth(",
    "eth_type(",
    "vlan(",
    "encap(",
    "ipv4(",
    "ipv6(",
    "tcp(",
    "mpls(",
    "tunnel(",
    "nsh(",
    "geneve({",
    "}",
    "vxlan(gbp(",
    "erspan(",
    "flags(",
    "ct_state(",
    "ct_label(",
    "ct_tuple6(",
    "in_port(",
    "key32(",
    "frag=",
    "src=",
    "dst=",
    "class=",
    "len=",
    "label=",
    "ttl=",
    "vid=",
    "0x8100",
    "0x0800",
    "/",
    "0",
    "1",
    "0xffffffffffffffff",
    "+trk",
    "-new",
    "::",
    "10.0.0.1",
    "02:00:00:00:00:01",
    ")",
    "))",
    ",",
    ", ",
    "ufid:",
    "packets:",
    "bytes:",
    "used:",
    "actions:",
    "userspace(pid=",
    "slow_path(",
    "userdata(",
    "clone(",
    "sample(sample=",
    "%,actions(",
    "check_pkt_len(size=",
    "gt(",
    "le(",
    "ct(",
    "nat(",
    "set(",
    "push_nsh(",
    "md2=",
    "psample(",
    "tnl_push(tnl_port(",
    "header(size=",
    "no",
    "é",
    "\u{1F40D}",
];

#[test]
fn every_recorded_line_cut_at_every_byte_returns() {
    for line in recorded() {
        for end in 0..line.len() {
            if let Some(text) = line.get(..end) {
                let _ = parse_dump_line(text, &NoNames);
            }
        }
    }
}

#[test]
fn every_recorded_line_with_a_changed_byte_returns() {
    // A small generator is enough, and makes every run the same.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    const BYTES: &[u8] = b"(),/=:.-+|{}%x0129afz _";
    for line in recorded() {
        for _ in 0..8 {
            let mut bytes = line.clone().into_bytes();
            for _ in 0..1 + next() % 3 {
                let at = next() as usize % bytes.len();
                bytes[at] = BYTES[next() as usize % BYTES.len()];
            }
            if let Ok(text) = String::from_utf8(bytes) {
                parse_all(&text);
            }
        }
    }
}

#[test]
fn the_set_of_a_key_is_the_set_of_its_exact_match() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..200 {
        let m = matches::any_match().new_tree(&mut runner).expect("a match").current();
        let exact = Match::exact(&m.key);
        assert_eq!(exact.attrs, AttrSet::of(&m.key));
        assert_eq!(exact.validate(), Ok(()), "{:?}", exact.key);
    }
}
