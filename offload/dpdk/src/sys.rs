//! DPDK as bindgen reads it from the headers of the version that this is built for.
#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    unnecessary_transmutes,
    unsafe_op_in_unsafe_fn,
    unreachable_pub
)]
include!(concat!(env!("OUT_DIR"), "/dpdk.rs"));
