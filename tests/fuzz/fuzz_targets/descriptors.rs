//! What a device writes, as the driver reads it: capability blob, entry and counter records, completions, events, slow
//! packets. The driver must neither panic nor hang, and must answer every update exactly once.
//!
//! The bytes go two ways. Whole, through the parsers that see a device's bytes first. And as damage: behind the real
//! driver sits the simulated NIC, whose writes to host memory are changed where the input says so.
#![no_main]

use flowlift_driver::fl1::fuzz::device_bytes;
use flowlift_tests::hostile::{Bytes, drive};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    device_bytes(data);
    drive(Bytes::new(data), 40);
});
