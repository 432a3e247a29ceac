//! Tests of key extraction: the rules by name, both paths against each other, and every frame cut at every byte.
//!
//! The comparison with Open vSwitch's own keys is in tests/tests/oracle_keys.rs, since it needs the attribute codec.

mod bare;
mod cut;
mod paths;
mod rules;

use super::{KeyBuf, Layers, extract, extract_key};
use flowlift_flow::{Key, Metadata};

/// A packet from port 1.
const FROM_PORT_1: Metadata = Metadata { in_port: 1, recirc_id: 0, dp_hash: 0, skb_priority: 0, skb_mark: 0 };

/// Bytes from hex digits; white space is skipped.
fn hex(digits: &str) -> Vec<u8> {
    let digits: Vec<_> = digits.chars().filter(|c| !c.is_whitespace()).collect();
    let byte =
        |pair: &[char]| u8::from_str_radix(&pair.iter().collect::<String>(), 16).expect("two hex digits");
    assert!(digits.len().is_multiple_of(2), "odd number of hex digits");
    digits.chunks(2).map(byte).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Key and layers of a frame, from a fresh buffer.
fn key_and_layers(frame: &[u8]) -> (Key, Layers) {
    let mut buf = KeyBuf::new();
    let layers = extract(frame, &FROM_PORT_1, &mut buf);
    (buf.key().clone(), layers)
}

/// The frames of one of the oracle's captures (classic pcap, little-endian).
fn oracle(set: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../fixtures/packets/oracle/{set}.pcap", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut rest = &bytes[24..];
    let mut frames = Vec::new();
    while let Some((head, after)) = rest.split_first_chunk::<16>() {
        let captured = u32::from_le_bytes(head[8..12].try_into().expect("4 bytes")) as usize;
        let (frame, after) = after.split_at(captured);
        frames.push(frame.to_vec());
        rest = after;
    }
    assert!(!frames.is_empty(), "{path} has no frames");
    frames
}
