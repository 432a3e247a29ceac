//! Meters and totals as a journal's records leave them: by the same rules when they are written and when they are read.

use super::record::{Record, Subject};
use flowlift_ovs::backend::DpIndex;
use flowlift_softpath::MeterConfig;
use std::collections::BTreeMap;

/// What a journal says of datapaths besides their flows.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Meters by datapath and ID.
    pub meters: BTreeMap<(DpIndex, u32), MeterConfig>,
    /// What is counted; a subject without counters has none.
    pub totals: BTreeMap<(DpIndex, Subject), Vec<u64>>,
}

impl Shared {
    /// Takes a record of a meter or of totals, and leaves others. False if it says nothing new.
    pub(super) fn take(&mut self, record: &Record) -> bool {
        match record {
            Record::Meter(dp, id, config) => {
                self.meters.insert((*dp, *id), config.clone());
                self.totals.remove(&(*dp, Subject::Meter(*id)));
            }
            Record::MeterGone(dp, id) => {
                self.meters.remove(&(*dp, *id));
                self.totals.remove(&(*dp, Subject::Meter(*id)));
            }
            Record::Totals(dp, subject, all) => {
                // Most counters have not moved since they were last shown.
                let before = self.totals.get(&(*dp, *subject)).map_or(&[][..], Vec::as_slice);
                if before == all.as_slice() {
                    return false;
                }
                if all.is_empty() {
                    self.totals.remove(&(*dp, *subject));
                } else {
                    self.totals.insert((*dp, *subject), all.clone());
                }
            }
            _ => {}
        }
        true
    }
}
