//! Bindings of the DPDK that the driver is built for, and wrappers of what DPDK has as inline functions.
//!
//! Two places are asked: `DPDK_ROOT`, below which libdpdk-dev is installed or unpacked (default `/`), and `DPDK_SOURCE`, a
//! folder with the headers for drivers, which Debian ships in its source package alone. `tests/dpdk/build` makes both.

use std::env;
use std::path::{Path, PathBuf};

/// Functions, types and constants of DPDK that the driver names; bindgen adds what they need.
const FUNCTIONS: &str = "rte_version|rte_eal_process_type|rte_log|rte_log_register_type_and_pick_level|\
    rte_log_can_log|rte_socket_id|rte_pktmbuf_alloc_bulk|rte_pktmbuf_alloc|rte_pktmbuf_free|rte_pktmbuf_free_bulk|\
    rte_eth_vdev_allocate|rte_eth_dev_allocated|rte_eth_dev_release_port|rte_eth_dev_probing_finish|\
    rte_eth_dev_callback_process|rte_eth_linkstatus_set|rte_flow_error_set|rte_vdev_register|\
    rte_vdev_unregister|rte_eth_random_addr|flowlift_.*|__errno_location";
const TYPES: &str = "rte_eth_dev|rte_eth_dev_data|eth_dev_ops|rte_flow_ops|rte_vdev_driver|rte_vdev_device|\
    rte_mbuf|rte_mempool|rte_eth_dev_info|rte_eth_stats|rte_eth_xstat|rte_eth_xstat_name|rte_eth_link|rte_flow_.*|\
    rte_proc_type_t|rte_eth_event_type|rte_ether_addr|rte_eth_rxconf|rte_eth_txconf|rte_eth_conf|flowlift_.*";
const CONSTANTS: &str = "RTE_FLOW_.*|RTE_ETH_LINK_.*|RTE_ETH_EVENT_.*|RTE_ETHDEV_QUEUE_STAT_CNTRS|RTE_PROC_.*|\
    RTE_ETH_NAME_MAX_LEN|RTE_ETH_XSTATS_NAME_SIZE|RTE_VER_.*|RTE_LOG_.*|RTE_PKTMBUF_HEADROOM|RTE_ETH_QUEUE_STATE_.*|\
    RTE_MAX_ETHPORTS|RTE_VERSION|RTE_ETH_DEV_.*|FLOWLIFT_.*";

fn main() {
    let root = PathBuf::from(env::var("DPDK_ROOT").unwrap_or_else(|_| "/".into()));
    let source = env::var("DPDK_SOURCE").map(PathBuf::from);
    let Ok(source) = source else {
        fail(
            "DPDK_SOURCE is not set: the folder with ethdev_driver.h and bus_vdev_driver.h; tests/dpdk/build sets it",
        );
    };
    let include =
        [root.join("usr/include/dpdk"), root.join("usr/include/x86_64-linux-gnu/dpdk"), source.clone()];
    for (folder, file, package) in [
        (&include[0], "rte_ethdev.h", "libdpdk-dev"),
        (&include[2], "ethdev_driver.h", "dpdk's source package"),
        (&include[2], "bus_vdev_driver.h", "dpdk's source package"),
    ] {
        if !folder.join(file).exists() {
            fail(&format!("{} is missing in {}: it comes with {package}", file, folder.display()));
        }
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let wrappers = out.join("wrappers.c");
    bind(&include, &out.join("dpdk.rs"), &wrappers);
    compile(&include, &wrappers);
    println!("cargo::rustc-link-search=native={}", root.join("usr/lib/x86_64-linux-gnu").display());
    for library in ["rte_ethdev", "rte_eal", "rte_mbuf", "rte_mempool", "rte_ring", "rte_net", "rte_bus_vdev"]
    {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
    println!("cargo::rerun-if-changed=dpdk.h");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DPDK_ROOT");
    println!("cargo::rerun-if-env-changed=DPDK_SOURCE");
}

/// What DPDK's own pkg-config file asks of whoever includes its headers.
fn flags(include: &[PathBuf]) -> Vec<String> {
    let mut flags: Vec<String> = include.iter().map(|path| format!("-I{}", path.display())).collect();
    flags.extend(
        ["-include", "rte_config.h", "-march=corei7", "-DALLOW_EXPERIMENTAL_API", "-DALLOW_INTERNAL_API"]
            .map(String::from),
    );
    flags
}

fn bind(include: &[PathBuf], bindings: &Path, wrappers: &Path) {
    let generated = bindgen::Builder::default()
        .header("dpdk.h")
        .clang_args(flags(include))
        .allowlist_function(FUNCTIONS)
        .allowlist_type(TYPES)
        .allowlist_var(CONSTANTS)
        // Packed, with an address in it that is aligned since 24.11: no Rust structure is both.
        .opaque_type("rte_arp_hdr|rte_arp_ipv4")
        .wrap_static_fns(true)
        .wrap_static_fns_path(wrappers)
        .prepend_enum_name(false)
        .derive_default(true)
        .derive_debug(false)
        .layout_tests(false)
        .generate_comments(false)
        .generate();
    let generated = match generated {
        Ok(generated) => generated,
        Err(error) => fail(&format!("bindgen: {error}")),
    };
    if let Err(error) = generated.write_to_file(bindings) {
        fail(&format!("{}: {error}", bindings.display()));
    }
}

fn compile(include: &[PathBuf], wrappers: &Path) {
    let mut build = cc::Build::new();
    for flag in flags(include) {
        build.flag(flag);
    }
    build.include(".").file(wrappers).opt_level(3).warnings(false);
    if let Err(error) = build.try_compile("flowlift_dpdk_wrappers") {
        fail(&format!("wrappers of DPDK's inline functions: {error}"));
    }
}

fn fail(why: &str) -> ! {
    println!("cargo::error={why}");
    std::process::exit(1)
}
