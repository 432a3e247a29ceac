//! Reading captures as a stream.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use pcap_parser::pcap::{parse_pcap_frame, parse_pcap_frame_be, parse_pcap_header};

use super::buffer::Buffer;
use super::error::{CaptureError, Cause};
use super::pcapng::{self, Section};
use super::{Interface, LINK_TYPE_ETHERNET};
use crate::{Frame, FrameSource, MAX_FRAME, PortError};

/// Bytes of a pcap file's header.
const PCAP_HEADER: usize = 24;
/// Bytes before each packet of a pcap file.
const RECORD_HEADER: usize = 16;

/// Reads a pcap or pcapng capture, packet by packet.
#[derive(Debug)]
pub struct CaptureReader<R> {
    buffer: Buffer<R>,
    format: Format,
    interfaces: Vec<Interface>,
    /// The number of the record that is read next.
    record: u64,
    /// After the end or an error.
    done: bool,
}

#[derive(Debug)]
enum Format {
    Pcap { big_endian: bool, nanoseconds: bool },
    PcapNg(Section),
}

/// A packet, after the buffer has moved past its record: `len` bytes that begin `back` bytes before the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Packet {
    pub(super) timestamp_ns: u64,
    pub(super) interface: u32,
    pub(super) orig_len: u32,
    pub(super) back: usize,
    pub(super) len: usize,
}

impl CaptureReader<File> {
    /// Opens a capture file.
    ///
    /// # Errors
    /// As [`CaptureReader::new`]; a file that cannot be opened is [`Cause::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<CaptureReader<File>, CaptureError> {
        let file = File::open(path).map_err(|error| CaptureError {
            offset: 0,
            record: 0,
            cause: Cause::Io(error),
        })?;
        CaptureReader::new(file)
    }
}

impl<R: Read> CaptureReader<R> {
    /// Reads a capture's header from `source`, which needs no buffer of its own.
    ///
    /// # Errors
    /// An empty or foreign file, a header that is cut off, a version that is not supported, and a pcap file of packets
    /// that are not Ethernet frames.
    pub fn new(source: R) -> Result<CaptureReader<R>, CaptureError> {
        let mut buffer = Buffer::new(source);
        let at_header = |cause| CaptureError { offset: 0, record: 0, cause };
        let available = buffer.fill(4).map_err(|error| at_header(error.into()))?;
        if available == 0 {
            return Err(at_header(Cause::Empty));
        }
        let mut interfaces = Vec::new();
        let magic: Option<&[u8; 4]> = buffer.window().first_chunk();
        let format = match magic {
            Some(&pcapng::SECTION_HEADER) => Format::PcapNg(Section::first(&mut buffer).map_err(at_header)?),
            Some(
                [0xa1, 0xb2, 0xc3, 0xd4]
                | [0xa1, 0xb2, 0x3c, 0x4d]
                | [0xd4, 0xc3, 0xb2, 0xa1]
                | [0x4d, 0x3c, 0xb2, 0xa1],
            ) => {
                let (format, interface) = pcap_header(&mut buffer).map_err(at_header)?;
                interfaces.push(interface);
                format
            }
            _ => {
                let begins = buffer.window().iter().copied().take(4).collect();
                return Err(at_header(Cause::NotACapture { begins }));
            }
        };
        Ok(CaptureReader { buffer, format, interfaces, record: 1, done: false })
    }

    /// The interfaces described so far. A pcap file has one, without a name; a pcapng describes them before their packets, and
    /// the interfaces of each further section follow those of the sections before.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// The next packet, or `None` at the end of the capture or after an error.
    ///
    /// # Errors
    /// The first damage, after every packet before it.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        let Some(packet) = self.advance()? else { return Ok(None) };
        let Packet { timestamp_ns, interface, orig_len, back, len } = packet;
        let data = self.buffer.consumed(back, len);
        Ok(Some(Frame { timestamp_ns, interface, orig_len, data, offload: None }))
    }

    fn advance(&mut self) -> Result<Option<Packet>, CaptureError> {
        while !self.done {
            let offset = self.buffer.offset();
            let record = self.record;
            let step = match &mut self.format {
                Format::Pcap { big_endian, nanoseconds } => {
                    pcap_record(&mut self.buffer, *big_endian, *nanoseconds)
                }
                Format::PcapNg(section) => section.block(&mut self.buffer, &mut self.interfaces),
            };
            self.record += 1;
            match step {
                Ok(Step::Packet(packet)) => return Ok(Some(packet)),
                Ok(Step::NoPacket) => {}
                Ok(Step::End) => self.done = true,
                Err(cause) => {
                    self.done = true;
                    return Err(CaptureError { offset, record, cause });
                }
            }
        }
        Ok(None)
    }
}

impl<R: Read> FrameSource for CaptureReader<R> {
    fn receive(&mut self) -> Result<Option<Frame<'_>>, PortError> {
        Ok(self.next_frame()?)
    }
}

/// What one record was.
pub(super) enum Step {
    Packet(Packet),
    NoPacket,
    End,
}

/// Fills the window with a record's first `needed` bytes.
pub(super) fn whole<R: Read>(buffer: &mut Buffer<R>, needed: usize) -> Result<(), Cause> {
    let available = buffer.fill(needed)?;
    if available < needed {
        return Err(Cause::CutOff { needed: needed as u64, available: available as u64 });
    }
    Ok(())
}

fn pcap_header<R: Read>(buffer: &mut Buffer<R>) -> Result<(Format, Interface), Cause> {
    whole(buffer, PCAP_HEADER)?;
    // The magic was recognized and the bytes are there: nothing is left that the parser could refuse.
    let (_, header) = parse_pcap_header(buffer.window())
        .map_err(|_| Cause::NotACapture { begins: buffer.window().iter().copied().take(4).collect() })?;
    let (major, minor) = (header.version_major, header.version_minor);
    // Before 2.3, the two lengths of a record were the other way round.
    if (major, minor) != (2, 4) && (major, minor) != (2, 3) {
        return Err(Cause::Version { major, minor });
    }
    let link_type = header.network.0.cast_unsigned();
    if link_type != LINK_TYPE_ETHERNET {
        return Err(Cause::LinkType { interface: 0, link_type });
    }
    let format =
        Format::Pcap { big_endian: header.is_bigendian(), nanoseconds: header.is_nanosecond_precision() };
    let snap_len = header.snaplen;
    buffer.consume(PCAP_HEADER);
    Ok((format, Interface { name: None, link_type, snap_len }))
}

fn pcap_record<R: Read>(buffer: &mut Buffer<R>, big_endian: bool, nanoseconds: bool) -> Result<Step, Cause> {
    if buffer.fill(RECORD_HEADER)? == 0 {
        return Ok(Step::End);
    }
    whole(buffer, RECORD_HEADER)?;
    let caplen = u32_at(buffer.window(), 8, big_endian);
    if caplen as usize > MAX_FRAME {
        return Err(Cause::TooLong { length: caplen, limit: MAX_FRAME as u32 });
    }
    let size = RECORD_HEADER + caplen as usize;
    whole(buffer, size)?;
    let parse = if big_endian { parse_pcap_frame_be } else { parse_pcap_frame };
    // The length fits and the bytes are there, so the parser has nothing to refuse.
    let (_, record) = parse(buffer.window())
        .map_err(|_| Cause::CutOff { needed: size as u64, available: buffer.window().len() as u64 })?;
    // A damaged fraction of a second may be beyond one; it is added as it is.
    let fraction = u64::from(record.ts_usec) * if nanoseconds { 1 } else { 1000 };
    let timestamp_ns = u64::from(record.ts_sec) * 1_000_000_000 + fraction;
    let (orig_len, len) = (record.origlen, record.data.len());
    buffer.consume(size);
    Ok(Step::Packet(Packet { timestamp_ns, interface: 0, orig_len, back: len, len }))
}

/// The 32-bit number at `at`, 0 where there is none.
pub(super) fn u32_at(bytes: &[u8], at: usize, big_endian: bool) -> u32 {
    let four = bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default();
    if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
}
