//! Why a flow is not for the NIC: which field, action or limit, on which table, and what would lift it.

use crate::meter::MeterCause;
use flowlift_driver::nic::{Field, MatchKind, Stage, TableCaps, TableId, TableKind};
use flowlift_flow::PortNo;
use std::fmt;

/// The table that refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableRef {
    /// Table.
    pub id: TableId,
    /// Its stage.
    pub stage: Stage,
    /// A TCAM, not a hash table.
    pub tcam: bool,
}

impl From<&TableCaps> for TableRef {
    fn from(t: &TableCaps) -> Self {
        Self { id: t.id, stage: t.stage, tcam: matches!(t.kind, TableKind::Tcam) }
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.tcam { "tcam" } else { "hash" };
        write!(f, "table {} ({kind}, stage {})", self.id.0, self.stage.0)
    }
}

/// Why a flow cannot be lowered. `table` is the table that came closest to taking it, where a table decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// What stands in the way.
    pub cause: Cause,
    /// On which table; `None` if it holds for the NIC as a whole.
    pub table: Option<TableRef>,
}

/// What stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// A field of the flow's match, by its name in OVS's text form.
    Field {
        /// Name.
        name: &'static str,
        /// Why.
        why: FieldCause,
    },
    /// An action, by its name in OVS's text form.
    Action {
        /// Place in the flow's actions, from 0, nested ones counted with the outer one.
        index: u16,
        /// Name.
        name: &'static str,
        /// Why.
        why: ActionCause,
    },
    /// A limit of the NIC.
    Limit(Limit),
    /// Recirculation does not reach the flow in hardware.
    Recirc {
        /// Recirculation ID.
        id: u32,
        /// Why.
        why: RecircCause,
    },
    /// The entry does not mean what the flow means: a bug of the lowering or of the driver, found before it did harm.
    LoweringBug(Difference),
}

/// Why a field stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum FieldCause {
    /// No key of the table has it.
    NotInTable(Field),
    /// The table takes it, but not with this mask.
    MaskNotTaken(MatchKind),
    /// Every packet that comes from the NIC's wires has 0 in it, and the flow asks for something else.
    NeverFromNic,
    /// The NIC's parser does not look there; packets that have it go to the slow queue.
    NotParsed,
    /// The NIC's parser does not take packets of this Ethernet type; they go to the slow queue.
    TypeNotParsed(u16),
    /// It means something only together with another field, which the flow does not match exactly.
    Needs(&'static str),
    /// No packet at all has this value.
    Impossible,
    /// It is partly masked, which no entry can say.
    PartlyMasked,
    /// The port is not on the NIC.
    PortNotOnNic(PortNo),
    /// The flow takes packets from every port, but this many ports are more than a flow's entries may be.
    TooManyPorts(u16),
}

/// Why an action stands in the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ActionCause {
    /// No entry can do this on any NIC that this project knows.
    Software,
    /// The NIC has meters, but packets that its tables do not finish are software's: the meter would be one more bucket there, and
    /// let more through than it says.
    TwoBuckets,
    /// The meter that it asks is not one of the NIC's.
    Meter(MeterCause),
    /// The table does not have it.
    NotInTable,
    /// The table cannot set this field.
    NotSettable(Field),
    /// The table sets all of this field or nothing.
    SetsBits(Field),
    /// The NIC does not send a packet back to where it came from.
    ToIngress,
    /// The action fixes a field that cannot be set (U8).
    NeverSet(&'static str),
    /// The flow does not match this exactly, so that packets without the header would pass.
    Needs(&'static str),
    /// The port is not on the NIC.
    PortNotOnNic(PortNo),
    /// It is exact only as the last action.
    NotLast,
    /// It is exact only before any output, and before any other change of the TTL.
    NotFirst,
    /// It is exact only directly before an output.
    NotBeforeOutput,
    /// Its argument is not one that a packet can have.
    BadArgument,
    /// A change of this metadata would have to go along with the packet.
    LosesMetadata(&'static str),
    /// No stage of the NIC that this table reaches comes after it.
    NoLaterStage,
    /// The headers that it looks at were wrapped by an earlier action.
    BehindTunnel,
    /// It leaves the outer UDP source port open, and NIC and software would not choose the same.
    OpenSourcePort,
}

/// A limit of the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// Actions of an entry.
    Actions {
        /// How many the flow needs.
        need: u16,
        /// How many the table takes.
        max: u8,
    },
    /// The stage has no table.
    NoTable(Stage),
    /// The driver cannot encode the entry: its actions take more room than a command of the device has.
    Encoding,
    /// The device has no exact equivalent of the entry as a whole; the driver's words.
    Inexpressible(&'static str),
    /// The table's entries do not count what a flow's statistics are made of.
    Uncounted,
    /// Every table that would take the flow is excluded, being full.
    Full,
    /// The flow gives way to others, which a hash table cannot say.
    NoRanks,
}

/// Why recirculation does not reach a flow in hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecircCause {
    /// No flow that is meant for hardware recirculates to it.
    NoParent,
    /// The flows recirculate in a circle.
    Circle,
    /// More stages than the NIC has.
    TooDeep {
        /// How many it would take, the first included.
        need: u16,
        /// How many there are.
        have: u16,
    },
}

/// What raise-and-compare found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// The driver could not encode the entry or decode it again.
    Codec,
    /// The entry has bits outside the table's fields, or key bits outside its mask.
    StrayBits,
    /// The entry does not match all that the flow matches, in this field.
    Match(&'static str),
    /// The entry does something else than the flow.
    Actions,
}

impl Refusal {
    /// A refusal that holds for the NIC as a whole.
    pub fn of_nic(cause: Cause) -> Self {
        Self { cause, table: None }
    }

    /// What would lift the refusal, for a person.
    pub fn lift(&self) -> String {
        match self.cause {
            Cause::Field { name, why } => match why {
                FieldCause::NotInTable(field) => match self.table {
                    Some(t) => {
                        format!("a profile whose stage {} matches {} would lift it", t.stage.0, field.name())
                    }
                    None => format!("a profile that matches {} would lift it", field.name()),
                },
                FieldCause::MaskNotTaken(_) => format!("an exact match of {name}, or a TCAM, would lift it"),
                FieldCause::NeverFromNic | FieldCause::Impossible => {
                    "nothing needs to: such packets do not come from the NIC".into()
                }
                FieldCause::NotParsed => format!("a NIC whose parser sees {name} would lift it"),
                FieldCause::TypeNotParsed(ty) => {
                    format!("a NIC whose parser takes type {ty:#06x} would lift it")
                }
                FieldCause::Needs(other) => format!("an exact match of {other} would lift it"),
                FieldCause::PartlyMasked => {
                    format!("matching all of {name}, or nothing of it, would lift it")
                }
                FieldCause::PortNotOnNic(p) => format!("making port {} a port of the NIC would lift it", p.0),
                FieldCause::TooManyPorts(_) => {
                    "making every port of the NIC a port of the datapath would lift it".into()
                }
            },
            Cause::Action { name, why, .. } => match why {
                ActionCause::Software => format!("without {name} the flow could be in hardware"),
                ActionCause::TwoBuckets => {
                    "a NIC whose slow path can draw on its meters' buckets would lift it".into()
                }
                ActionCause::Meter(why) => why.lift().into(),
                ActionCause::NotInTable => match self.table {
                    Some(t) => format!("a profile whose stage {} has {name} would lift it", t.stage.0),
                    None => format!("a profile that has {name} would lift it"),
                },
                ActionCause::NotSettable(field) => {
                    format!("a profile that can set {} would lift it", field.name())
                }
                ActionCause::SetsBits(field) => format!("setting all of {} would lift it", field.name()),
                ActionCause::ToIngress => "an exact match of another in_port would lift it".into(),
                ActionCause::NeverSet(field) => format!("leaving {field} out of the mask would lift it"),
                ActionCause::Needs(field) => format!("an exact match of {field} would lift it"),
                ActionCause::PortNotOnNic(p) => {
                    format!("making port {} a port of the NIC would lift it", p.0)
                }
                ActionCause::NotLast => format!("{name} as the last action would lift it"),
                ActionCause::NotFirst => format!("{name} before the outputs would lift it"),
                ActionCause::NotBeforeOutput => format!("{name} directly before an output would lift it"),
                ActionCause::BadArgument => "a valid argument would lift it".into(),
                ActionCause::LosesMetadata(field) => format!("not changing {field} before it would lift it"),
                ActionCause::NoLaterStage => "a profile with more stages would lift it".into(),
                ActionCause::BehindTunnel => format!("{name} before tnl_push would lift it"),
                ActionCause::OpenSourcePort => "a UDP source port other than 0 would lift it".into(),
            },
            Cause::Limit(Limit::Actions { .. }) => {
                "fewer actions, or a profile with more per entry, would lift it".into()
            }
            Cause::Limit(Limit::Encoding) => "fewer actions, or ones that set less, would lift it".into(),
            Cause::Limit(Limit::Inexpressible(_)) => "a NIC that can do it would lift it".into(),
            Cause::Limit(Limit::Uncounted) => {
                "accepting flows whose packets are not counted would lift it".into()
            }
            Cause::Limit(Limit::NoTable(_)) => "a profile with more stages would lift it".into(),
            Cause::Limit(Limit::Full) => "a larger profile, or fewer flows, would lift it".into(),
            Cause::Limit(Limit::NoRanks) => {
                "the highest priority, or a profile whose stage has a TCAM, would lift it".into()
            }
            Cause::Recirc { why, .. } => match why {
                RecircCause::NoParent => "a flow in hardware that recirculates to it would lift it".into(),
                RecircCause::Circle => "nothing does: stages are only passed forwards".into(),
                RecircCause::TooDeep { .. } => "a profile with more stages would lift it".into(),
            },
            Cause::LoweringBug(_) => "a report of this bug would".into(),
        }
    }

    /// A refusal by a table; the table is left out where any table would say the same.
    pub(crate) fn by(cause: Cause, table: TableRef) -> Self {
        let same_everywhere = match cause {
            Cause::Action { why, .. } => !matches!(
                why,
                ActionCause::NotInTable
                    | ActionCause::NotSettable(_)
                    | ActionCause::SetsBits(_)
                    | ActionCause::NoLaterStage
            ),
            _ => false,
        };
        Self { cause, table: (!same_everywhere).then_some(table) }
    }

    /// How far lowering came before it was refused: of several tables' refusals the one with the most is shown.
    pub(crate) fn progress(&self) -> u8 {
        match self.cause {
            Cause::Field { why: FieldCause::NotInTable(_), .. } => 0,
            Cause::Field { .. } => 1,
            Cause::Limit(Limit::NoTable(_) | Limit::NoRanks) => 0,
            Cause::Action { .. } => 2,
            Cause::Limit(_) => 3,
            Cause::Recirc { .. } => 3,
            Cause::LoweringBug(_) => 4,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cause)?;
        if let Some(t) = self.table {
            write!(f, " in {t}")?;
        }
        write!(f, "; {}", self.lift())
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Field { name, why } => {
                write!(f, "field {name} ")?;
                match why {
                    FieldCause::NotInTable(_) => write!(f, "is not a key"),
                    FieldCause::MaskNotTaken(MatchKind::Exact) => write!(f, "takes exact matches only"),
                    FieldCause::MaskNotTaken(_) => write!(f, "takes prefixes only"),
                    FieldCause::NeverFromNic => write!(f, "asks for a value that no packet from the NIC has"),
                    FieldCause::NotParsed => write!(f, "is not seen by the NIC's parser"),
                    FieldCause::TypeNotParsed(ty) => {
                        write!(f, "asks for type {ty:#06x}, which the NIC's parser does not take")
                    }
                    FieldCause::Needs(other) => write!(f, "is matched without an exact {other}"),
                    FieldCause::Impossible => write!(f, "asks for a value that no packet has"),
                    FieldCause::PartlyMasked => write!(f, "is partly masked"),
                    FieldCause::PortNotOnNic(p) => {
                        write!(f, "asks for port {}, which is not on the NIC", p.0)
                    }
                    FieldCause::TooManyPorts(n) => {
                        write!(
                            f,
                            "is wildcarded, which takes {n} entries because the NIC has other ports too"
                        )
                    }
                }
            }
            Self::Action { index, name, why } => {
                write!(f, "action {name} (number {}) ", u32::from(index) + 1)?;
                match why {
                    ActionCause::Software => write!(f, "is for software only"),
                    ActionCause::TwoBuckets => {
                        write!(f, "would have a bucket in the NIC and another one in software")
                    }
                    ActionCause::Meter(why) => why.fmt(f),
                    ActionCause::NotInTable => write!(f, "is not an action"),
                    ActionCause::NotSettable(field) => {
                        write!(f, "sets {}, which cannot be set", field.name())
                    }
                    ActionCause::SetsBits(field) => {
                        write!(f, "sets some bits of {}, which is set as a whole only", field.name())
                    }
                    ActionCause::ToIngress => {
                        write!(f, "may go to the port that the packet came from, which the NIC leaves out")
                    }
                    ActionCause::NeverSet(field) => write!(f, "sets {field}, which cannot be set"),
                    ActionCause::Needs(field) => write!(f, "needs an exact {field} in the match"),
                    ActionCause::PortNotOnNic(p) => {
                        write!(f, "goes to port {}, which is not on the NIC", p.0)
                    }
                    ActionCause::NotLast => write!(f, "is followed by other actions"),
                    ActionCause::NotFirst => write!(f, "comes after an output or another change of the TTL"),
                    ActionCause::NotBeforeOutput => write!(f, "is not followed by an output"),
                    ActionCause::BadArgument => write!(f, "has an argument that no packet can have"),
                    ActionCause::LosesMetadata(field) => {
                        write!(f, "comes after a change of {field}, which would be lost")
                    }
                    ActionCause::NoLaterStage => write!(f, "needs a later stage"),
                    ActionCause::BehindTunnel => {
                        write!(f, "comes after tnl_push, which hides the packet's headers")
                    }
                    ActionCause::OpenSourcePort => {
                        write!(
                            f,
                            "leaves the outer UDP source port open, which NIC and software would choose differently"
                        )
                    }
                }
            }
            Self::Limit(Limit::Actions { need, max }) => {
                write!(f, "{need} actions are needed, {max} are the limit")
            }
            Self::Limit(Limit::Encoding) => write!(f, "the actions take more room than an entry has"),
            Self::Limit(Limit::Inexpressible(what)) => f.write_str(what),
            Self::Limit(Limit::Uncounted) => write!(f, "entries do not count packets and bytes"),
            Self::Limit(Limit::NoTable(stage)) => write!(f, "stage {} has no table", stage.0),
            Self::Limit(Limit::Full) => write!(f, "every table that would take the flow is full"),
            Self::Limit(Limit::NoRanks) => write!(f, "a priority below the highest needs a TCAM"),
            Self::Recirc { id, why } => {
                write!(f, "recirc_id({id:#x}) ")?;
                match why {
                    RecircCause::NoParent => write!(f, "is reached by no flow in hardware"),
                    RecircCause::Circle => write!(f, "recirculates in a circle"),
                    RecircCause::TooDeep { need, have } => write!(f, "takes {need} stages, {have} are there"),
                }
            }
            Self::LoweringBug(d) => {
                write!(f, "the NIC's entry would differ from the flow: ")?;
                match d {
                    Difference::Codec => write!(f, "the driver cannot encode it"),
                    Difference::StrayBits => write!(f, "stray bits"),
                    Difference::Match(name) => write!(f, "field {name}"),
                    Difference::Actions => write!(f, "actions"),
                }
            }
        }
    }
}
