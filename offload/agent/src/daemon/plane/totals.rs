//! Counters of datapaths, ports and meters, which go on over the daemons' lives: what each of them had counted when it was last
//! shown is in the journal, and the next daemon begins there. So nobody sees one go back.

use super::{Dp, Plane};
use crate::daemon::journal::Subject;
use flowlift_flow::PortNo;
use flowlift_ovs::backend::{DpIndex, VportStats};
use flowlift_softpath::{Counters, MeterCount, MeterStats};

/// What a port counted, and its upcalls: sent and lost.
pub(super) type PortTotals = (VportStats, (u64, u64));

impl Dp {
    /// What the subject had counted before this daemon, and since.
    fn total(&self, subject: Subject, own: Vec<u64>) -> Vec<u64> {
        let before = self.carried.get(&subject).map_or(&[][..], Vec::as_slice);
        let before = before.iter().copied().chain(std::iter::repeat(0));
        own.into_iter().zip(before).map(|(own, before)| own.wrapping_add(before)).collect()
    }
}

impl Plane {
    fn remember(&self, dp: DpIndex, subject: Subject, totals: &[u64]) {
        self.log(|journal| journal.totals(dp, subject, totals.to_vec()));
    }

    /// What a datapath counted in all; `lost_later` are the upcalls that the softpath does not know to be lost.
    pub(super) fn datapath_totals(&self, index: DpIndex, dp: &Dp, lost_later: u64) -> Counters {
        let mut own = dp.table.borrow().counters();
        own.lost += lost_later;
        let all = dp.total(Subject::Datapath, own.iter().map(|(_, n)| n).collect());
        self.remember(index, Subject::Datapath, &all);
        Counters::of_values(all)
    }

    /// What a port counted in all, given what it counted since this daemon has it.
    pub(super) fn port_totals(&self, index: DpIndex, number: PortNo, own: PortTotals) -> PortTotals {
        let Some(dp) = self.dps.get(&index) else { return own };
        let (stats, upcalls) = own;
        let VportStats { rx_packets, tx_packets, rx_bytes, tx_bytes, .. } = stats;
        let VportStats { rx_errors, tx_errors, rx_dropped, tx_dropped, .. } = stats;
        let own = [
            rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped,
            upcalls.0, upcalls.1,
        ];
        let subject = Subject::Port(number.0);
        let all = dp.total(subject, own.to_vec());
        self.remember(index, subject, &all);
        let mut all = all.into_iter();
        let mut next = || all.next().unwrap_or(0);
        // In the order of `own`.
        let stats = VportStats {
            rx_packets: next(),
            tx_packets: next(),
            rx_bytes: next(),
            tx_bytes: next(),
            rx_errors: next(),
            tx_errors: next(),
            rx_dropped: next(),
            tx_dropped: next(),
        };
        (stats, (next(), next()))
    }

    /// A port is no more: another one of its number begins at 0.
    pub(super) fn forget_port_totals(&mut self, index: DpIndex, number: PortNo) {
        let subject = Subject::Port(number.0);
        if let Some(dp) = self.dps.get_mut(&index) {
            dp.carried.remove(&subject);
        }
        self.remember(index, subject, &[]);
    }

    /// A datapath is no more.
    pub(super) fn forget_datapath_totals(&self, index: DpIndex) {
        self.remember(index, Subject::Datapath, &[]);
    }

    /// Takes note of what a meter counted. It is the softpath that goes on counting, since a meter that is set anew begins at 0.
    pub(super) fn remember_meter(&self, index: DpIndex, id: u32, stats: &MeterStats) {
        let counts = std::iter::once(stats.total).chain(stats.bands.iter().copied());
        let counts = counts.flat_map(|count| [count.packets, count.bytes]);
        let used = stats.used.map_or(0, |used| used.saturating_add(1));
        let all: Vec<u64> = std::iter::once(used).chain(counts).collect();
        self.remember(index, Subject::Meter(id), &all);
    }
}

/// What [`Plane::remember_meter`] noted.
pub(super) fn meter_stats(totals: &[u64]) -> MeterStats {
    let (used, counts) = totals.split_first().unwrap_or((&0, &[]));
    let (counts, _) = counts.as_chunks();
    let mut counts = counts.iter().map(|[packets, bytes]| MeterCount { packets: *packets, bytes: *bytes });
    MeterStats {
        total: counts.next().unwrap_or_default(),
        bands: counts.collect(),
        used: used.checked_sub(1),
    }
}
