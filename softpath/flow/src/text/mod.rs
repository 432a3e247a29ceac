//! The text form of flows: what `ovs-appctl dpctl/dump-flows` prints and `dpctl/add-flow` takes.
//!
//! Parsing makes one pass over the bytes of a line and allocates only for actions. Whatever Open vSwitch would not
//! print is an error that names the place and what was expected; nothing is skipped silently. Printing is the inverse:
//! a dump's line, parsed and printed, is the same line again.
//!
//! The one thing that a [`crate::Match`] does not keep is the order of the attributes, which has no meaning (R38) and
//! which differs between versions of Open vSwitch; [`AttrOrder`] carries it from the parser to the printer.

mod action_parse;
mod action_print;
mod cookie;
mod ct;
mod dump;
mod flags;
mod key_parse;
mod key_print;
mod lexer;
mod names;
mod nsh;
mod set;
mod tunnel;

pub use action_parse::parse_actions;
pub use action_print::ActionsText;
pub use dump::{
    DpLayer, DumpFlow, DumpReader, FlowStats, Offloaded, Used, parse_dump_line, parse_ufid, print_tcp_flags,
};
pub use key_parse::{AttrOrder, parse_key, parse_match};
pub use key_print::{MatchText, PrintOptions, key_text};
pub use names::{NoNames, PortMap, PortNames};

/// How deeply actions may nest; Open vSwitch's own parser stops at the same depth.
pub const MAX_DEPTH: usize = 32;

/// What is wrong with a line of text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {kind}")]
pub struct TextError {
    /// Line, from 1. A function that parses a single line says 1.
    pub line: u64,
    /// Byte of the line, from 1.
    pub column: u32,
    /// What is wrong.
    pub kind: ErrorKind,
}

/// What is wrong with a text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Something else should stand here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// No such key attribute, or one that only the kernel knows.
    #[error("unknown key attribute '{0}'")]
    UnknownAttribute(String),
    /// No such action.
    #[error("unknown action '{0}'")]
    UnknownAction(String),
    /// An attribute or action has no such field.
    #[error("{within} has no field '{name}'")]
    UnknownField {
        /// Attribute or action.
        within: &'static str,
        /// The name that was found.
        name: String,
    },
    /// A port name that the name table does not have.
    #[error("unknown port '{0}'")]
    UnknownPort(String),
    /// An attribute stands twice at one nesting level (R37).
    #[error("{0} stands twice at one level")]
    DuplicateAttribute(&'static str),
    /// A field stands twice in one attribute.
    #[error("field '{name}' stands twice in {within}")]
    DuplicateField {
        /// Attribute or action.
        within: &'static str,
        /// Field.
        name: String,
    },
    /// A mask that nothing can have.
    #[error("impossible mask: {0}")]
    ImpossibleMask(&'static str),
    /// The match contradicts itself or lacks what an attribute needs.
    #[error(transparent)]
    Match(#[from] crate::matching::MatchError),
    /// A header or field that the set action does not take (U8).
    #[error("{0} cannot be set")]
    CannotSet(&'static str),
    /// A number does not fit.
    #[error("{what} out of range (at most {max})")]
    OutOfRange {
        /// What was expected.
        what: &'static str,
        /// Largest value.
        max: u64,
    },
    /// Data is longer than its field.
    #[error("{what} longer than {max} bytes")]
    TooLong {
        /// Which data.
        what: &'static str,
        /// Largest number of bytes.
        max: usize,
    },
    /// Actions nest too deeply.
    #[error("nested more than {MAX_DEPTH} deep")]
    TooDeep,
    /// The line goes on after its end.
    #[error("unexpected text after the end")]
    TrailingGarbage,
    /// The line ends where a flow should stand.
    #[error("no flow in the line")]
    Empty,
}
