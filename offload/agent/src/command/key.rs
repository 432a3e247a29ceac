//! `flowlift key`.

use super::Outcome;
use crate::cli::KeyArgs;
use crate::failure::Tell;
use anyhow::Result;
use flowlift_flow::Metadata;
use flowlift_flow::text::key_text;
use flowlift_port::CaptureReader;
use flowlift_softpath::extract::extract_key;
use std::io::Write;

/// Prints each packet's number, a tab and its key; with `--tlv` a tab and the key's Netlink attributes in hex.
///
/// # Errors
/// A file that is no capture, or none from some record on, or output that cannot be written.
pub fn run(args: &KeyArgs) -> Result<Outcome> {
    let name = args.pcap.display();
    let mut reader = CaptureReader::open(&args.pcap).at(&name)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let metadata = Metadata { in_port: args.in_port, ..Metadata::default() };
    let mut number = 0u64;
    loop {
        let frame = match reader.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break,
            Err(error) => {
                out.flush()?;
                return Err(error).at(name).remedy(format_args!("the {number} packets before it are above"));
            }
        };
        number += 1;
        let key = extract_key(frame.data, &metadata);
        write!(out, "{number}\t{}", key_text(&key))?;
        if args.tlv {
            write!(out, "\t{}", flowlift_ovs::key::key_hex(&key))?;
        }
        writeln!(out)?;
    }
    out.flush()?;
    Ok(Outcome::Good)
}
