//! The fault layer: seeded, so that a run is replayed from its seed.
//!
//! Each kind has a random stream of its own, derived from the one seed, so that enabling one kind does not move the
//! others. A kind with rate 0 draws nothing.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt;
use std::str::FromStr;

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FaultKind {
    /// INSERT answers TABLE_FULL though there is room. Opportunity: each INSERT.
    TableFull,
    /// A completion comes up to 128 heartbeats late. Opportunity: each completion.
    SlowCompletion,
    /// A completion never comes. Opportunity: each completion.
    LostCompletion,
    /// A completion comes twice. Opportunity: each completion.
    DuplicatedCompletion,
    /// A completion comes after its successor. Opportunity: each completion.
    ReorderedCompletion,
    /// A counter record of a snapshot is an older one. Opportunity: each record.
    StaleCounter,
    /// A counter record of a snapshot has a flipped bit. Opportunity: each record.
    FlippedCounter,
    /// READ_ENTRY gives an older record. Opportunity: each READ_ENTRY.
    StaleEntry,
    /// READ_ENTRY's record has a flipped bit (opportunity: each one), or a bit of an installed entry flips in the
    /// device's memory (opportunity: each step).
    FlippedEntry,
    /// A DMA access of the device is blocked. Opportunity: each access.
    DmaFault,
    /// The device stops until FLR. Opportunity: each step of an enabled device.
    Hang,
    /// A port loses its link for up to 32 steps. Opportunity: each step of an enabled device.
    LinkFlap,
    /// The device resets itself. Opportunity: each step of an enabled device.
    Reset,
    /// The device vanishes. Opportunity: each step of an enabled device.
    Unplug,
}

impl FaultKind {
    /// All kinds.
    pub const ALL: [Self; 14] = [
        Self::TableFull,
        Self::SlowCompletion,
        Self::LostCompletion,
        Self::DuplicatedCompletion,
        Self::ReorderedCompletion,
        Self::StaleCounter,
        Self::FlippedCounter,
        Self::StaleEntry,
        Self::FlippedEntry,
        Self::DmaFault,
        Self::Hang,
        Self::LinkFlap,
        Self::Reset,
        Self::Unplug,
    ];

    /// The name in fault specifications and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::TableFull => "table_full",
            Self::SlowCompletion => "slow_completion",
            Self::LostCompletion => "lost_completion",
            Self::DuplicatedCompletion => "duplicated_completion",
            Self::ReorderedCompletion => "reordered_completion",
            Self::StaleCounter => "stale_counter",
            Self::FlippedCounter => "flipped_counter",
            Self::StaleEntry => "stale_entry",
            Self::FlippedEntry => "flipped_entry",
            Self::DmaFault => "dma_fault",
            Self::Hang => "hang",
            Self::LinkFlap => "link_flap",
            Self::Reset => "reset",
            Self::Unplug => "unplug",
        }
    }

    /// Rate and limit when a specification names the kind without a rate. The kinds that cost the driver a full replay
    /// of its tables are limited in number, so that a run under faults ends.
    fn default_rate(self) -> Rate {
        let (probability, limit) = match self {
            Self::TableFull
            | Self::SlowCompletion
            | Self::DuplicatedCompletion
            | Self::ReorderedCompletion => (0.02, u32::MAX),
            Self::LostCompletion => (0.01, u32::MAX),
            Self::StaleCounter | Self::FlippedCounter | Self::StaleEntry => (0.05, u32::MAX),
            Self::FlippedEntry => (0.002, 64),
            Self::DmaFault => (0.0005, 4),
            Self::Hang | Self::Reset => (0.002, 4),
            Self::LinkFlap => (0.01, 64),
            Self::Unplug => (0.0001, 1),
        };
        Rate { probability, limit }
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often a kind strikes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Probability per opportunity, 0 to 1.
    pub probability: f64,
    /// Most injections in a run.
    pub limit: u32,
}

/// Rates of all kinds. The default has none.
#[derive(Debug, Clone, PartialEq)]
pub struct FaultPlan {
    rates: [Rate; FaultKind::ALL.len()],
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self { rates: [Rate { probability: 0.0, limit: 0 }; FaultKind::ALL.len()] }
    }
}

impl FaultPlan {
    /// This plan with `kind` at `rate`.
    #[must_use]
    pub fn with(mut self, kind: FaultKind, rate: Rate) -> Self {
        self.rates[kind as usize] = rate;
        self
    }
    /// This plan with `kind` at its default rate and limit.
    #[must_use]
    pub fn with_default(self, kind: FaultKind) -> Self {
        self.with(kind, kind.default_rate())
    }
    /// Every kind at its default rate and limit.
    pub fn all() -> Self {
        FaultKind::ALL.into_iter().fold(Self::default(), Self::with_default)
    }
    /// The rate of `kind`.
    pub fn rate(&self, kind: FaultKind) -> Rate {
        self.rates[kind as usize]
    }
    /// No kind can strike.
    pub fn is_empty(&self) -> bool {
        self.rates.iter().all(|r| r.probability <= 0.0 || r.limit == 0)
    }
}

/// A fault specification could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultSpecError {
    /// No such kind.
    #[error("unknown fault {0:?}; known: all, {names}", names = FaultKind::ALL.map(FaultKind::name).join(", "))]
    UnknownKind(String),
    /// A rate that is not a number from 0 to 1.
    #[error("rate {rate:?} of fault {kind} is not a number from 0 to 1")]
    BadRate {
        /// The fault.
        kind: String,
        /// What stood there.
        rate: String,
    },
}

impl FromStr for FaultPlan {
    type Err = FaultSpecError;

    /// Reads `all`, or a comma list of names, each with an optional `=rate`. An explicit rate has no limit on the
    /// number of injections, except for `unplug`, which can happen once.
    fn from_str(s: &str) -> Result<Self, FaultSpecError> {
        let mut plan = Self::default();
        for item in s.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (name, rate) = match item.split_once('=') {
                Some((n, r)) => (n.trim(), Some(r.trim())),
                None => (item, None),
            };
            let kinds = match FaultKind::ALL.iter().position(|k| k.name() == name) {
                Some(i) => &FaultKind::ALL[i..=i],
                None if name == "all" => &FaultKind::ALL[..],
                None => return Err(FaultSpecError::UnknownKind(name.to_owned())),
            };
            for &kind in kinds {
                plan = match rate {
                    None => plan.with_default(kind),
                    Some(text) => {
                        let probability =
                            text.parse().ok().filter(|p| (0.0..=1.0).contains(p)).ok_or_else(|| {
                                FaultSpecError::BadRate { kind: name.to_owned(), rate: text.to_owned() }
                            })?;
                        plan.with(kind, Rate { probability, limit: u32::MAX })
                    }
                };
            }
        }
        Ok(plan)
    }
}

/// One injected fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FaultRecord {
    /// Device step, counted from power-on.
    pub step: u64,
    /// What was injected.
    pub kind: FaultKind,
    /// Where: the kind decides (cookie, entry id, port, IOVA).
    pub detail: u64,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: {} {:#x}", self.step, self.kind, self.detail)
    }
}

struct Stream {
    rng: ChaCha8Rng,
    rate: Rate,
}

/// The layer that the device asks at each opportunity.
pub(crate) struct Faults {
    streams: Vec<Stream>,
    log: Vec<FaultRecord>,
    /// Device step, for the log.
    pub(crate) step: u64,
    /// Cleared while the device undoes something: an undo is not an opportunity.
    pub(crate) armed: bool,
}

impl Faults {
    pub(crate) fn new(seed: u64, plan: &FaultPlan) -> Self {
        let streams = FaultKind::ALL
            .into_iter()
            .map(|kind| {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(kind as u64 + 1);
                Stream { rng, rate: plan.rate(kind) }
            })
            .collect();
        Self { streams, log: Vec::new(), step: 0, armed: true }
    }

    /// Whether any kind can strike.
    pub(crate) fn any_enabled(&self) -> bool {
        FaultKind::ALL.iter().any(|kind| self.enabled(*kind))
    }

    /// Whether `kind` can strike at all.
    pub(crate) fn enabled(&self, kind: FaultKind) -> bool {
        let r = self.streams[kind as usize].rate;
        r.probability > 0.0 && r.limit > 0
    }

    /// One opportunity for `kind`; `detail` goes into the log.
    pub(crate) fn strike(&mut self, kind: FaultKind, detail: u64) -> bool {
        if !self.armed {
            return false;
        }
        let s = &mut self.streams[kind as usize];
        if s.rate.probability <= 0.0 || s.rate.limit == 0 || s.rng.random::<f64>() >= s.rate.probability {
            return false;
        }
        s.rate.limit -= 1;
        self.log.push(FaultRecord { step: self.step, kind, detail });
        true
    }

    /// A number below `bound` (0 if that is 0) from the stream of `kind`.
    pub(crate) fn pick(&mut self, kind: FaultKind, bound: u64) -> u64 {
        match bound {
            0 => 0,
            b => self.streams[kind as usize].rng.random_range(0..b),
        }
    }

    pub(crate) fn log(&self) -> &[FaultRecord] {
        &self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_design() {
        assert_eq!(
            FaultKind::ALL.map(FaultKind::name).join(" "),
            "table_full slow_completion lost_completion duplicated_completion reordered_completion stale_counter \
             flipped_counter stale_entry flipped_entry dma_fault hang link_flap reset unplug"
        );
    }

    #[test]
    fn specifications() {
        let p: FaultPlan = "hang=0.5, reset".parse().unwrap();
        assert_eq!(p.rate(FaultKind::Hang), Rate { probability: 0.5, limit: u32::MAX });
        assert_eq!(p.rate(FaultKind::Reset), FaultKind::Reset.default_rate());
        assert_eq!(p.rate(FaultKind::Unplug).limit, 0);
        assert_eq!("all".parse::<FaultPlan>().unwrap(), FaultPlan::all());
        assert!("".parse::<FaultPlan>().unwrap().is_empty());
        assert_eq!("hnag".parse::<FaultPlan>(), Err(FaultSpecError::UnknownKind("hnag".into())));
        for bad in ["hang=", "hang=2", "hang=-0.1", "hang=NaN", "hang=x"] {
            assert!(matches!(bad.parse::<FaultPlan>(), Err(FaultSpecError::BadRate { .. })), "{bad}");
        }
    }

    #[test]
    fn one_kind_does_not_move_another() {
        let run = |spec: &str| {
            let mut f = Faults::new(7, &spec.parse().unwrap());
            (0..1000)
                .map(|i| {
                    f.strike(FaultKind::Hang, i);
                    f.strike(FaultKind::Reset, i)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(run("reset=0.1"), run("reset=0.1,hang=0.3"));
        assert!(run("reset=0.1").contains(&true));
    }
}
