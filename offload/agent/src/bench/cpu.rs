//! Cores, and the time that a thread spends on them.

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::time::Duration;

/// This thread's own.
const THIS: Pid = Pid::from_raw(0);

/// Cores that this process may run on, in rising order.
///
/// # Errors
/// The system call fails.
pub(super) fn cores() -> Result<Vec<usize>> {
    let set = sched_getaffinity(THIS).context("cannot read the CPU affinity")?;
    Ok((0..CpuSet::count()).filter(|&core| set.is_set(core).unwrap_or(false)).collect())
}

/// Cores for `threads` threads: from `first` on, or the last ones there are (the first is where most else runs).
///
/// # Errors
/// There are not so many.
pub(super) fn choose(first: Option<usize>, threads: usize) -> Result<Vec<usize>> {
    let cores = cores()?;
    let start = match first {
        None => cores.len().saturating_sub(threads),
        Some(core) => cores.iter().position(|&c| c == core).with_context(|| {
            format!("core {core} is not among those that this process may use: {cores:?}")
        })?,
    };
    match cores.get(start..start + threads) {
        Some(chosen) => Ok(chosen.to_vec()),
        None => bail!("{threads} threads need as many cores; there are {cores:?}"),
    }
}

/// Keeps this thread on one core.
///
/// # Errors
/// The kernel refuses.
pub(super) fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core)?;
    sched_setaffinity(THIS, &set).with_context(|| format!("cannot pin the thread to core {core}"))
}

/// CPU time of this thread so far.
pub(super) fn thread_time() -> Duration {
    // This clock exists on every kernel that threads do.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Rate of the time stamp counter as the kernel measured it at boot; `None` on a machine without one.
pub(super) fn tsc_hz() -> Option<f64> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    // A "bogomips" on x86 is two counts of the TSC in a microsecond: the delay loop waits for the counter.
    let line = info.lines().find(|line| line.starts_with("bogomips"))?;
    let bogomips: f64 = line.rsplit(':').next()?.trim().parse().ok()?;
    Some(bogomips * 500_000.0)
}

/// Memory of this process that is in RAM, in bytes.
///
/// # Errors
/// `/proc` is not there.
pub(super) fn resident() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").context("cannot read the memory in use")?;
    let line = text.lines().find_map(|l| l.strip_prefix("Rss:")).context("no Rss line")?;
    let kib: usize = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_is_not_there_is_named() {
        let error = format!("{:#}", choose(Some(100_000), 1).unwrap_err());
        assert!(error.contains("core 100000 is not among"), "{error}");
        let error = format!("{:#}", choose(None, 100_000).unwrap_err());
        assert!(error.contains("100000 threads need as many cores"), "{error}");
    }

    #[test]
    fn thread_time_counts_work_and_not_waiting() {
        let start = thread_time();
        std::thread::sleep(Duration::from_millis(30));
        let idle = thread_time() - start;
        assert!(idle < Duration::from_millis(25), "{idle:?} for 30 ms of sleep");
        let mut x = 0u64;
        while thread_time() - start < Duration::from_millis(5) {
            x = std::hint::black_box(x + 1);
        }
        assert!(x > 0);
    }
}
