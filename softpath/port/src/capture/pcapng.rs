//! The blocks of a pcapng file.
//!
//! This module finds where blocks begin and end, since an error has to name the place; pcap-parser reads what is in them.

use std::io::Read;

use pcap_parser::{
    InterfaceDescriptionBlock, OptionCode, parse_enhancedpacketblock_be, parse_enhancedpacketblock_le,
    parse_interfacedescriptionblock_be, parse_interfacedescriptionblock_le, parse_simplepacketblock_be,
    parse_simplepacketblock_le,
};

use super::buffer::Buffer;
use super::error::Cause;
use super::reader::{Packet, Step, u32_at, whole};
use super::{Interface, LINK_TYPE_ETHERNET};
use crate::MAX_FRAME;

/// The type of a section header block: the same in both byte orders.
pub(super) const SECTION_HEADER: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];
/// The block types that matter here; the others are skipped.
const INTERFACE_DESCRIPTION: u32 = 1;
/// What enhanced packet blocks replaced.
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// The longest block that is read, in bytes; capture programs have the same limit.
const MAX_BLOCK: u32 = 16 * 1024 * 1024;
/// Bytes of a block around its body: type, length, and length again.
const AROUND: usize = 12;
/// Bytes of the shortest section header block.
const SECTION_HEADER_MIN: usize = 28;
/// Where the data begins in enhanced (and obsolete) packet blocks, in bytes from the block's beginning.
const PACKET_DATA: usize = 28;
/// Where the data begins in simple packet blocks.
const SIMPLE_DATA: usize = 12;

/// A section: its byte order and its interfaces.
#[derive(Debug)]
pub(super) struct Section {
    big_endian: bool,
    interfaces: Vec<Clock>,
}

/// What is needed of an interface to read its packets.
#[derive(Debug, Clone, Copy)]
struct Clock {
    /// The interface's place among those of all sections.
    index: u32,
    link_type: u32,
    snap_len: u32,
    /// `if_tsresol`: a power of ten, or with the highest bit of two.
    resolution: u8,
    /// `if_tsoffset`: seconds to add.
    offset: i64,
}

impl Clock {
    /// A time stamp in nanoseconds since the epoch. One that is out of range becomes the nearest that is not.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        let exponent = u32::from(self.resolution & 0x7f);
        let per_second = if self.resolution & 0x80 == 0 {
            10u128.checked_pow(exponent)
        } else {
            1u128.checked_shl(exponent)
        };
        // Ticks so fine that their number per second does not fit into 128 bits: all of a u64 is less than a nanosecond.
        let since = per_second.map_or(0, |n| u128::from(ticks) * 1_000_000_000 / n) as i128;
        let total = since + i128::from(self.offset) * 1_000_000_000;
        u64::try_from(total.max(0)).unwrap_or(u64::MAX)
    }
}

impl Section {
    /// Reads the section header that a file begins with.
    pub(super) fn first<R: Read>(buffer: &mut Buffer<R>) -> Result<Section, Cause> {
        let mut section = Section { big_endian: false, interfaces: Vec::new() };
        section.block(buffer, &mut Vec::new())?;
        Ok(section)
    }

    /// Reads one block. `all` are the interfaces of all sections.
    pub(super) fn block<R: Read>(
        &mut self,
        buffer: &mut Buffer<R>,
        all: &mut Vec<Interface>,
    ) -> Result<Step, Cause> {
        if buffer.fill(AROUND)? == 0 {
            return Ok(Step::End);
        }
        whole(buffer, AROUND)?;
        if buffer.window().starts_with(&SECTION_HEADER) {
            let magic = u32_at(buffer.window(), 8, true);
            self.big_endian = match magic {
                0x1a2b_3c4d => true,
                0x4d3c_2b1a => false,
                _ => return Err(Cause::ByteOrder { magic }),
            };
            self.interfaces.clear();
        }
        let length = u32_at(buffer.window(), 4, self.big_endian);
        if (length as usize) < AROUND || !length.is_multiple_of(4) {
            return Err(Cause::BlockLength { length });
        }
        if length > MAX_BLOCK {
            return Err(Cause::TooLong { length, limit: MAX_BLOCK });
        }
        let size = length as usize;
        whole(buffer, size)?;
        let step = self.parse(&buffer.window()[..size], all)?;
        buffer.consume(size);
        Ok(step)
    }

    /// Parses a whole block, of a length that was checked.
    fn parse(&mut self, block: &[u8], all: &mut Vec<Interface>) -> Result<Step, Cause> {
        let size = block.len();
        let kind = u32_at(block, 0, self.big_endian);
        let (length, trailer) = (size as u32, u32_at(block, size - 4, self.big_endian));
        if trailer != length {
            return Err(Cause::Trailer { length, trailer });
        }
        if block.starts_with(&SECTION_HEADER) {
            return section_header(block, self.big_endian);
        }
        let malformed = |_| Cause::Malformed { kind };
        match kind {
            INTERFACE_DESCRIPTION => {
                let parse = match self.big_endian {
                    true => parse_interfacedescriptionblock_be,
                    false => parse_interfacedescriptionblock_le,
                };
                let (_, description) = parse(block).map_err(malformed)?;
                self.interface(&description, all);
                Ok(Step::NoPacket)
            }
            ENHANCED_PACKET => {
                let parse = match self.big_endian {
                    true => parse_enhancedpacketblock_be,
                    false => parse_enhancedpacketblock_le,
                };
                let (_, packet) = parse(block).map_err(malformed)?;
                let ticks = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                self.packet(block, packet.if_id, ticks, packet.caplen, packet.origlen)
            }
            SIMPLE_PACKET => {
                let parse = match self.big_endian {
                    true => parse_simplepacketblock_be,
                    false => parse_simplepacketblock_le,
                };
                let (_, packet) = parse(block).map_err(malformed)?;
                let clock = self.clock(0)?;
                let limit = if clock.snap_len == 0 { u32::MAX } else { clock.snap_len };
                let kept = packet.origlen.min(limit).min((size - SIMPLE_DATA - 4) as u32);
                if kept as usize > MAX_FRAME {
                    return Err(Cause::TooLong { length: kept, limit: MAX_FRAME as u32 });
                }
                Ok(Step::Packet(Packet {
                    timestamp_ns: 0,
                    interface: clock.index,
                    orig_len: packet.origlen,
                    back: size - SIMPLE_DATA,
                    len: kept as usize,
                }))
            }
            OBSOLETE_PACKET => {
                if size < PACKET_DATA + 4 {
                    return Err(Cause::Malformed { kind });
                }
                // The interface is 16 bits, followed by a count of drops in the other 16.
                let word = u32_at(block, 8, self.big_endian);
                let interface = if self.big_endian { word >> 16 } else { word & 0xffff };
                let number = |at| u32_at(block, at, self.big_endian);
                let ticks = u64::from(number(12)) << 32 | u64::from(number(16));
                self.packet(block, interface, ticks, number(20), number(24))
            }
            // Names, statistics, comments, what others have defined: no packets.
            _ => Ok(Step::NoPacket),
        }
    }

    fn packet(
        &self,
        block: &[u8],
        interface: u32,
        ticks: u64,
        caplen: u32,
        orig_len: u32,
    ) -> Result<Step, Cause> {
        let clock = self.clock(interface)?;
        if caplen as usize > MAX_FRAME {
            return Err(Cause::TooLong { length: caplen, limit: MAX_FRAME as u32 });
        }
        if caplen as usize > block.len() - PACKET_DATA - 4 {
            return Err(Cause::Malformed { kind: u32_at(block, 0, self.big_endian) });
        }
        Ok(Step::Packet(Packet {
            timestamp_ns: clock.nanoseconds(ticks),
            interface: clock.index,
            orig_len,
            back: block.len() - PACKET_DATA,
            len: caplen as usize,
        }))
    }

    /// The interface `number` of this section, for a packet: it must be one of Ethernet.
    fn clock(&self, number: u32) -> Result<Clock, Cause> {
        let unknown = Cause::UnknownInterface { interface: number, described: self.interfaces.len() };
        let clock = *self.interfaces.get(number as usize).ok_or(unknown)?;
        if clock.link_type != LINK_TYPE_ETHERNET {
            return Err(Cause::LinkType { interface: number, link_type: clock.link_type });
        }
        Ok(clock)
    }

    fn interface(&mut self, description: &InterfaceDescriptionBlock<'_>, all: &mut Vec<Interface>) {
        let mut name = None;
        let (mut resolution, mut offset) = (6, 0);
        for option in &description.options {
            let Ok(value) = option.as_bytes() else { continue };
            match option.code {
                OptionCode::IfName => {
                    // Some programs end the name with a zero.
                    let text = String::from_utf8_lossy(value);
                    name = Some(text.trim_end_matches('\0').to_owned());
                }
                OptionCode::IfTsresol => resolution = value.first().copied().unwrap_or(6),
                OptionCode::IfTsoffset => {
                    if let Some(&eight) = value.first_chunk() {
                        offset = if self.big_endian {
                            i64::from_be_bytes(eight)
                        } else {
                            i64::from_le_bytes(eight)
                        };
                    }
                }
                _ => {}
            }
        }
        let link_type = description.linktype.0.cast_unsigned();
        let snap_len = description.snaplen;
        // A file has fewer blocks than a u32 has values as long as it is below 80 GB; past that, the last number repeats.
        let index = u32::try_from(all.len()).unwrap_or(u32::MAX);
        all.push(Interface { name, link_type, snap_len });
        self.interfaces.push(Clock { index, link_type, snap_len, resolution, offset });
    }
}

/// Checks a section header's version; its options do not matter here.
fn section_header(block: &[u8], big_endian: bool) -> Result<Step, Cause> {
    if block.len() < SECTION_HEADER_MIN {
        return Err(Cause::Malformed { kind: u32::from_be_bytes(SECTION_HEADER) });
    }
    let word = u32_at(block, 12, big_endian);
    let (first, second) = ((word >> 16) as u16, word as u16);
    let (major, minor) = if big_endian { (first, second) } else { (second, first) };
    // 1.2 was written by mistake by programs that meant 1.0.
    if major != 1 || (minor != 0 && minor != 2) {
        return Err(Cause::Version { major, minor });
    }
    Ok(Step::NoPacket)
}
