//! Frames that end before their IP header says: the one place where keys differ from those of OVS's user space.
//!
//! User space gives such a packet an empty ipv4 or ipv6; the kernel keeps what is there. R34 asks for the kernel's way:
//! a TCP packet cut off after its IP header still has proto=6, and so tcp(src=0,dst=0), which an empty ipv4 (proto=0)
//! would not have.

/// Bytes that the IP header promises beyond the end of the frame; 0 without an IP header. Finds the header by itself,
/// through tags and SNAP.
pub(crate) fn promised_beyond_end(frame: &[u8]) -> usize {
    let be16 = |at: usize| frame.get(at..at + 2).map_or(0, |b| usize::from(u16::from_be_bytes([b[0], b[1]])));
    let mut at = 12;
    while matches!(be16(at), 0x8100 | 0x88a8) && at < 20 {
        at += 4;
    }
    if be16(at) < 0x600 {
        at += 8;
    }
    let (fixed, end) = match be16(at) {
        0x0800 => (20, at + 2 + be16(at + 4)),
        0x86dd => (40, at + 2 + 40 + be16(at + 6)),
        _ => return 0,
    };
    if frame.len() < at + 2 + fixed { 0 } else { end.saturating_sub(frame.len()) }
}
