//! Copies a capture into a pcap file: `cargo run -p flowlift-port --example copy -- IN OUT [micro]`.
//!
//! Nanoseconds unless `micro` is asked for. A damaged capture is copied up to the damage, which is then the error.

use flowlift_port::capture::Resolution;
use flowlift_port::{CaptureReader, FrameSink, FrameSource, PcapWriter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, target, resolution) = match &arguments[..] {
        [source, target] => (source, target, Resolution::Nano),
        [source, target, micro] if micro == "micro" => (source, target, Resolution::Micro),
        _ => return Err("copy IN OUT [micro]".into()),
    };
    let mut source = CaptureReader::open(source)?;
    let mut target = PcapWriter::create(target, resolution)?;
    let copied = loop {
        match source.receive() {
            Ok(Some(frame)) => target.send(frame)?,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    target.finish()?;
    Ok(copied?)
}
