//! What drivers have in common of their surroundings: time, waiting, and the switches of a function's command register.

use crate::nic::NicError;
use flowlift_bus::{BusError, PciFunction};
use std::time::{Duration, Instant};

/// Command register of configuration space, and its bits.
const COMMAND: u16 = 4;
/// See [`COMMAND`]: the function answers to memory accesses.
pub(crate) const COMMAND_MEMORY: u32 = 1 << 1;
/// See [`COMMAND`]: the function may do DMA.
pub(crate) const COMMAND_BUS_MASTER: u32 = 1 << 2;

/// Clears and sets bits of a function's command register.
pub(crate) fn set_command(f: &dyn PciFunction, clear: u32, set: u32) -> Result<(), BusError> {
    let command = f.config_read(COMMAND, 2)?;
    f.config_write(COMMAND, 2, command & !clear | set)
}

/// Time and waiting, as the driver sees them.
pub trait Platform: Send + Sync {
    /// Monotonic time in nanoseconds.
    fn now_ns(&self) -> u64;
    /// Called again and again while bring-up waits for the device: lets it work, if it is in this thread, or sleeps a
    /// little.
    fn relax(&self);
}

/// The machine's clock, and short sleeps.
#[derive(Debug)]
pub struct Machine {
    start: Instant,
}

impl Default for Machine {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Platform for Machine {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
    fn relax(&self) {
        std::thread::sleep(Duration::from_micros(20));
    }
}

/// Waits until `done`; false if that does not come within `deadline` of `since`, a time of the platform's. A clock that
/// stands still ends it after `turns`.
pub(crate) fn wait(
    platform: &dyn Platform,
    (since, deadline): (u64, Duration),
    turns: u32,
    mut done: impl FnMut() -> Result<bool, NicError>,
) -> Result<bool, NicError> {
    for _ in 0..turns {
        if done()? {
            return Ok(true);
        }
        if u128::from(platform.now_ns().saturating_sub(since)) > deadline.as_nanos() {
            break;
        }
        platform.relax();
    }
    Ok(false)
}
