//! How often a packet is recirculated at most: as often as by the kernel's datapath.
//!
//! There (`net/openvswitch/actions.c`) a packet's actions nest up to [`LIMIT`] levels. Recirculations of the first three levels happen
//! at once; a deeper one is put off until the packet's other actions are done, where it is back on the second level. Ten are put off
//! for a packet; what comes then is dropped. So a chain of [`LONGEST_CHAIN`] gets through, and a loop that branches still ends soon.
//! Here nothing is put off, so that what leaves keeps the order of the actions, but just as many recirculations happen.

/// `OVS_RECURSION_LIMIT`.
pub const LIMIT: usize = 5;
/// Levels whose recirculations happen at once (`OVS_DEFERRED_ACTION_THRESHOLD`).
const AT_ONCE: usize = LIMIT - 2;
/// Recirculations that are put off for a packet (`DEFERRED_ACTION_FIFO_SIZE`).
const PUT_OFF: usize = 10;
/// Recirculations, each within the one before, that a packet goes through.
pub const LONGEST_CHAIN: usize = AT_ONCE * (1 + PUT_OFF);

/// A packet's recirculations.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Recursion {
    /// Those that the packet is within.
    depth: u8,
    /// Those that the kernel would have put off.
    put_off: u8,
}

impl Recursion {
    /// A recirculation begins; false if there were too many, and nothing begins.
    pub(crate) fn enter(&mut self) -> bool {
        if self.depth > 0 && self.depth.is_multiple_of(AT_ONCE as u8) {
            if self.put_off == PUT_OFF as u8 {
                return false;
            }
            self.put_off += 1;
        }
        self.depth += 1;
        true
    }

    /// The one that began last is done.
    pub(crate) fn leave(&mut self) {
        self.depth -= 1;
    }
}
