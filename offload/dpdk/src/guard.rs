//! The edge to C: no panic gets across, and one log line says what happened.

use crate::sys;
use std::any::Any;
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};

/// DPDK's number of the driver's log, `pmd.net.flowlift`.
static LOG_TYPE: AtomicU32 = AtomicU32::new(0);

/// Gives the driver a log of its own, from notices on: `--log-level=pmd.net.flowlift:info` sets another level.
pub fn register_log() {
    // SAFETY: the name is a C string; DPDK copies it, and registers at any time.
    let number = unsafe {
        sys::rte_log_register_type_and_pick_level(c"pmd.net.flowlift".as_ptr(), sys::RTE_LOG_NOTICE)
    };
    // A negative number is DPDK out of memory: then the lines go where EAL's own do.
    LOG_TYPE.store(u32::try_from(number).unwrap_or(0), Ordering::Relaxed);
}

/// Runs the body of a function that C calls. A panic, which would be a bug of ours, is logged and answered with
/// `otherwise`: the process is not ours to end.
pub fn guarded<T>(what: &'static str, otherwise: T, body: impl FnOnce() -> T) -> T {
    // Nothing is used after a panic that it may have left half-done: what several threads share lies behind locks whose
    // contents are replaced in one step, or counts.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => value,
        Err(panic) => {
            error(&format!("{what}: a bug: {}", text_of(panic.as_ref())));
            // A payload could panic again as it is dropped.
            std::mem::forget(panic);
            otherwise
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (None, Some(text)) => text,
        (None, None) => "a panic without a message",
    }
}

/// One line in DPDK's log, as an error.
pub fn error(text: &str) {
    log(sys::RTE_LOG_ERR, text);
}

/// One line in DPDK's log, as a warning.
pub fn warning(text: &str) {
    log(sys::RTE_LOG_WARNING, text);
}

/// One line in DPDK's log, as a notice.
pub fn notice(text: &str) {
    log(sys::RTE_LOG_NOTICE, text);
}

fn log(level: u32, text: &str) {
    let Ok(line) = CString::new(format!("net_flowlift: {}\n", text.replace('\0', "?"))) else { return };
    // SAFETY: both are C strings that outlive the call, and the format takes one string. The type is one of DPDK's own.
    unsafe { sys::rte_log(level, LOG_TYPE.load(Ordering::Relaxed), c"%s".as_ptr(), line.as_ptr()) };
}
