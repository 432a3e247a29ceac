//! Meters of the datapath as meters of the NIC: one band that drops, with a rate and a bucket.

use smallvec::SmallVec;
use std::fmt;

/// A meter as the datapath has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// It measures packets; if not, kilobits (1,000 bits).
    pub packets: bool,
    /// Rates per second and sizes of the bands' buckets, in that unit.
    pub bands: SmallVec<[(u32, u32); 1]>,
}

/// Why a meter is not in the NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MeterCause {
    /// The datapath has no such meter.
    Missing,
    /// It has another number of bands than one.
    Bands(usize),
    /// Its band has no rate, and so drops nothing.
    NoRate,
    /// Its band's bucket holds nothing, and so drops everything.
    NoBurst,
    /// All of the NIC's meters, this many, are in use.
    Full(u32),
    /// The NIC did not take it.
    NotSet,
}

/// What the NIC needs to know of a meter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) packets: bool,
    pub(crate) rate: u32,
    pub(crate) burst: u32,
}

impl Meter {
    /// The one bucket that does what the meter does.
    pub(crate) fn bucket(&self) -> Result<Bucket, MeterCause> {
        match self.bands[..] {
            [(0, _)] => Err(MeterCause::NoRate),
            [(_, 0)] => Err(MeterCause::NoBurst),
            [(rate, burst)] => Ok(Bucket { packets: self.packets, rate, burst }),
            _ => Err(MeterCause::Bands(self.bands.len())),
        }
    }
}

impl MeterCause {
    /// What would lift it, for a person.
    pub(crate) fn lift(self) -> &'static str {
        match self {
            Self::Missing => "adding the meter would lift it",
            Self::Bands(_) => "a meter of one band would lift it",
            Self::NoRate => "a rate above 0 would lift it",
            Self::NoBurst => "a burst size above 0 would lift it",
            Self::Full(_) => "fewer meters, or a profile with more, would lift it",
            Self::NotSet => "a NIC that works would lift it",
        }
    }
}

impl fmt::Display for MeterCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => write!(f, "asks a meter that there is not"),
            Self::Bands(n) => write!(f, "asks a meter of {n} bands, where the NIC's have one"),
            Self::NoRate => write!(f, "asks a meter whose band has rate 0, which the NIC's cannot"),
            Self::NoBurst => write!(f, "asks a meter whose band has burst size 0, which the NIC's cannot"),
            Self::Full(max) => write!(f, "asks one meter more than the {max} of the NIC"),
            Self::NotSet => write!(f, "asks a meter that the NIC did not take"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_band_that_lets_something_through_is_a_bucket() {
        let of = |bands: &[(u32, u32)]| Meter { packets: true, bands: bands.into() }.bucket();
        assert_eq!(of(&[(u32::MAX, 1)]), Ok(Bucket { packets: true, rate: u32::MAX, burst: 1 }));
        assert_eq!((of(&[]), of(&[(1, 1), (2, 2)])), (Err(MeterCause::Bands(0)), Err(MeterCause::Bands(2))));
        assert_eq!((of(&[(0, 1)]), of(&[(1, 0)])), (Err(MeterCause::NoRate), Err(MeterCause::NoBurst)));
    }
}
