//! Lines of a flow dump: handle, match, statistics and actions of one flow.

use super::lexer::{Cursor, Result};
use super::{
    ActionsText, AttrOrder, ErrorKind, MatchText, NoNames, PortNames, PrintOptions, TextError, action_parse,
    key_parse,
};
use crate::{Flow, Match, Ufid};
use std::fmt::{self, Display, Write};

/// A flow's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlowStats {
    /// Packets.
    pub packets: u64,
    /// L2 bytes.
    pub bytes: u64,
    /// When a packet was last seen.
    pub used: Used,
    /// All TCP flags seen, 12 bits.
    pub tcp_flags: u16,
}

/// How long ago a flow's last packet was seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Used {
    /// No packet was seen.
    #[default]
    Never,
    /// So many milliseconds before the dump. Negative if the clock ran while the dump was made.
    MillisAgo(i64),
}

/// What `offloaded:` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloaded {
    /// Wholly in hardware.
    Yes,
    /// Hardware helps.
    Partial,
}

/// Which part of the datapath has the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DpLayer {
    /// The kernel's or user space's flow table.
    Ovs,
    /// Traffic control's flower classifier.
    Tc,
    /// DPDK's rte_flow.
    Dpdk,
}

impl DpLayer {
    /// The name in a dump.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ovs => "ovs",
            Self::Tc => "tc",
            Self::Dpdk => "dpdk",
        }
    }
}

/// A line of a dump, with all that is needed to print it again.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DumpFlow {
    /// The flow itself.
    pub flow: Flow,
    /// The order in which the line names the attributes.
    pub order: AttrOrder,
    /// Counters; a line for add-flow has none.
    pub stats: Option<FlowStats>,
    /// `offloaded:`.
    pub offloaded: Option<Offloaded>,
    /// `dp:`.
    pub layer: Option<DpLayer>,
    /// `dp-extra-info:`; empty without one.
    pub extra_info: String,
    /// The line was made with `-m`: it has what only such lines have.
    pub verbose: bool,
}

impl DumpFlow {
    /// The line as Open vSwitch prints it, with port names from `names`; verbose if it was.
    pub fn text<'a>(&'a self, names: Option<&'a dyn PortNames>) -> impl Display + 'a {
        DumpText { dump: self, options: PrintOptions { names, verbose: self.verbose } }
    }

    /// The line printed in another way.
    pub fn text_with<'a>(&'a self, options: PrintOptions<'a>) -> impl Display + 'a {
        DumpText { dump: self, options }
    }
}

struct DumpText<'a> {
    dump: &'a DumpFlow,
    options: PrintOptions<'a>,
}

impl Display for DumpText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { dump, options } = self;
        if let Some(ufid) = dump.flow.ufid.filter(|_| options.verbose) {
            write!(f, "{ufid}, ")?;
        }
        MatchText { matching: &dump.flow.matching, order: Some(&dump.order), options: *options }.fmt(f)?;
        if let Some(stats) = &dump.stats {
            write!(f, ", {stats}")?;
        }
        if options.verbose {
            match dump.offloaded {
                Some(Offloaded::Yes) => f.write_str(", offloaded:yes")?,
                Some(Offloaded::Partial) => f.write_str(", offloaded:partial")?,
                None => {}
            }
            if let Some(layer) = dump.layer {
                write!(f, ", dp:{}", layer.name())?;
            }
        }
        write!(f, ", actions:{}", ActionsText { actions: &dump.flow.actions, names: options.names })?;
        if options.verbose && !dump.extra_info.is_empty() {
            write!(f, ", dp-extra-info:{}", dump.extra_info)?;
        }
        Ok(())
    }
}

impl Display for FlowStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "packets:{}, bytes:{}, used:", self.packets, self.bytes)?;
        match self.used {
            Used::Never => f.write_str("never")?,
            Used::MillisAgo(ms) => {
                let sign = if ms < 0 { "-" } else { "" };
                let ms = ms.unsigned_abs();
                write!(f, "{sign}{}.{:03}s", ms / 1000, ms % 1000)?;
            }
        }
        if self.tcp_flags != 0 {
            f.write_str(", flags:")?;
            print_tcp_flags(f, self.tcp_flags)?;
        }
        Ok(())
    }
}

/// Letters of the flags in a dump's statistics, in the order in which they are printed.
const TCP_LETTERS: [(&str, u16); 12] = [
    ("S", 0x002),
    ("F", 0x001),
    ("P", 0x008),
    ("R", 0x004),
    ("U", 0x020),
    (".", 0x010),
    ("E", 0x040),
    ("C", 0x080),
    ("N", 0x100),
    ("[200]", 0x200),
    ("[400]", 0x400),
    ("[800]", 0x800),
];

/// Writes TCP flags as in `flags:SFP.`; `none` without any.
pub fn print_tcp_flags(w: &mut dyn Write, flags: u16) -> fmt::Result {
    if flags == 0 {
        return w.write_str("none");
    }
    TCP_LETTERS.iter().filter(|(_, bit)| flags & bit != 0).try_for_each(|(letter, _)| w.write_str(letter))
}

impl Display for Ufid {
    /// `ufid:` and the octets as Open vSwitch groups them: words in the order of this machine. Open vSwitch itself has
    /// no text for a handle of other than 16 octets; those are plain hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ufid:")?;
        let ([a, b, c, d], []) = self.as_bytes().as_chunks::<4>() else {
            return self.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        };
        let [a, b, c, d] = [a, b, c, d].map(|word| u32::from_ne_bytes(*word));
        write!(f, "{a:08x}-{:04x}-{:04x}-{:04x}-{:04x}{d:08x}", b >> 16, b & 0xffff, c >> 16, c & 0xffff)
    }
}

/// Parses `ufid:` and a handle.
pub fn parse_ufid(text: &str) -> std::result::Result<Ufid, TextError> {
    let mut c = Cursor::new(text);
    let ufid = ufid(&mut c)?.ok_or_else(|| c.expected("'ufid:'"))?;
    if !c.at_end() {
        return Err(c.error(ErrorKind::TrailingGarbage));
    }
    Ok(ufid)
}

fn ufid(c: &mut Cursor<'_>) -> Result<Option<Ufid>> {
    if !c.eat_str("ufid:") {
        return Ok(None);
    }
    let digits = c.rest().iter().take_while(|b| b.is_ascii_hexdigit()).count();
    let mut octets = [0; 16];
    if c.rest().get(digits) != Some(&b'-') {
        let octets = octets.get_mut(..digits / 2).filter(|_| digits.is_multiple_of(2));
        let octets = octets.ok_or_else(|| c.expected("1 to 16 octets in hexadecimal"))?;
        c.hex_exact(octets)?;
        return Ufid::new(octets).map(Some).ok_or_else(|| c.expected("1 to 16 octets in hexadecimal"));
    }
    // The dashes stand before octets 4, 6, 8 and 10.
    for (i, octet) in octets.iter_mut().enumerate() {
        if matches!(i, 4 | 6 | 8 | 10) {
            c.expect(b'-', "'-' within the UFID")?;
        }
        let mut one = [0];
        c.hex_exact(&mut one)?;
        *octet = one[0];
    }
    for word in octets.as_chunks_mut::<4>().0 {
        *word = u32::from_be_bytes(*word).to_ne_bytes();
    }
    Ok(Ufid::new(&octets))
}

/// Parses one line of a dump, or of a file for add-flows: handle, match, statistics, actions. Statistics may be missing.
pub fn parse_dump_line(line: &str, names: &dyn PortNames) -> std::result::Result<DumpFlow, TextError> {
    let mut flow = DumpFlow::default();
    parse_into(line, names, &mut flow)?;
    Ok(flow)
}

fn parse_into(line: &str, names: &dyn PortNames, out: &mut DumpFlow) -> Result<()> {
    let c = &mut Cursor::new(line);
    // Fields are cleared one by one so that the reader's buffers are used again.
    out.flow.matching = Match::default();
    out.flow.actions.clear();
    (out.stats, out.offloaded, out.layer, out.verbose) = (None, None, None, false);
    out.extra_info.clear();
    c.skip_delimiters();
    out.flow.ufid = ufid(c)?;
    out.verbose = out.flow.ufid.is_some();
    key_parse::parse_attrs(c, &mut out.flow.matching, &mut out.order, names)?;
    loop {
        c.skip_delimiters();
        let from = c.pos();
        let word = c.ident();
        if !c.eat(b':') {
            c.set_pos(from);
            return Err(match c.at_end() {
                true => c.expected("'actions:'"),
                false => c.error(ErrorKind::Expected("a key attribute, 'packets:' or 'actions:'")),
            });
        }
        match word {
            "packets" if out.stats.is_none() => out.stats = Some(stats(c)?),
            "offloaded" if out.offloaded.is_none() => {
                out.offloaded = Some(match c.ident() {
                    "yes" => Offloaded::Yes,
                    "partial" => Offloaded::Partial,
                    _ => return Err(c.expected("'yes' or 'partial'")),
                });
                out.verbose = true;
            }
            "dp" if out.layer.is_none() => {
                out.layer = Some(match c.ident() {
                    "ovs" => DpLayer::Ovs,
                    "tc" => DpLayer::Tc,
                    "dpdk" => DpLayer::Dpdk,
                    _ => return Err(c.expected("'ovs', 'tc' or 'dpdk'")),
                });
                out.verbose = true;
            }
            "actions" => break,
            _ => {
                return Err(
                    c.error_at(from, ErrorKind::Expected("'packets:', 'offloaded:', 'dp:' or 'actions:'"))
                );
            }
        }
    }
    action_parse::parse_list(c, names, &mut out.flow.actions)?;
    if c.eat_str(", dp-extra-info:") {
        out.extra_info.push_str(c.take_rest());
        out.verbose = true;
    }
    if !c.at_end() {
        return Err(c.error(ErrorKind::TrailingGarbage));
    }
    Ok(())
}

/// Statistics after `packets:`.
fn stats(c: &mut Cursor<'_>) -> Result<FlowStats> {
    let mut stats = FlowStats { packets: c.decimal("a number of packets", u64::MAX)?, ..Default::default() };
    c.expect_str(", bytes:")?;
    stats.bytes = c.decimal("a number of bytes", u64::MAX)?;
    c.expect_str(", used:")?;
    if !c.eat_str("never") {
        let negative = c.eat(b'-');
        let seconds = c.decimal("seconds", i64::MAX as u64 / 1000 - 1)? as i64;
        c.expect(b'.', "'.' and milliseconds")?;
        let from = c.pos();
        let fraction = c.decimal("milliseconds", 999)? as i64;
        if c.pos() - from != 3 {
            return Err(c.error_at(from, ErrorKind::Expected("three digits of milliseconds")));
        }
        c.expect(b's', "'s' after the seconds")?;
        let ms = seconds * 1000 + fraction;
        stats.used = Used::MillisAgo(if negative { -ms } else { ms });
    }
    if c.eat_str(", flags:") && !c.eat_str("none") {
        while let Some((letter, bit)) = TCP_LETTERS.iter().find(|(l, _)| c.rest().starts_with(l.as_bytes())) {
            c.eat_str(letter);
            stats.tcp_flags |= bit;
        }
        if stats.tcp_flags == 0 {
            return Err(c.expected("TCP flags as in 'SFP.'"));
        }
    }
    Ok(stats)
}

/// Reads a dump line by line, reusing one flow's memory.
#[derive(Default)]
pub struct DumpReader<'n> {
    names: Option<&'n dyn PortNames>,
    line: u64,
    flow: DumpFlow,
}

impl<'n> DumpReader<'n> {
    /// A reader that knows these port names.
    pub fn new(names: &'n dyn PortNames) -> Self {
        Self { names: Some(names), ..Self::default() }
    }

    /// Number of lines read.
    pub fn lines(&self) -> u64 {
        self.line
    }

    /// Reads the next line, given without or with its line end. `None` for one that holds no flow: empty, a `#`
    /// comment, or a heading such as `flow-dump from the main thread:`.
    pub fn line(&mut self, line: &str) -> std::result::Result<Option<&mut DumpFlow>, TextError> {
        self.line += 1;
        let line = line.trim_end_matches(['\n', '\r']);
        let is_heading = line.starts_with("flow-dump from ") && line.ends_with(':');
        if is_heading || line.starts_with('#') || line.trim().is_empty() {
            return Ok(None);
        }
        match parse_into(line, self.names.unwrap_or(&NoNames), &mut self.flow) {
            Ok(()) => Ok(Some(&mut self.flow)),
            Err(error) => Err(TextError { line: self.line, ..error }),
        }
    }
}
