//! The arrows between crates that must never be (ARCHITECTURE.md, "Who knows whom"), and where `unsafe` may live.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// Every crate of the workspace with the crates of ours that it depends on (not for its tests).
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let manifest: toml::Table = read_toml(&root().join("Cargo.toml"));
    let members = manifest["workspace"]["members"].as_array().unwrap();
    let mut arrows = BTreeMap::new();
    // The DPDK driver is a workspace of its own, as it builds only where DPDK's headers are.
    for member in members.iter().map(|member| member.as_str().unwrap()).chain(["offload/dpdk"]) {
        let path = root().join(member).join("Cargo.toml");
        let manifest = read_toml(&path);
        let name = manifest["package"]["name"].as_str().unwrap().to_owned();
        let dependencies = ["dependencies", "build-dependencies"]
            .iter()
            .filter_map(|section| manifest.get(*section)?.as_table())
            .flat_map(|table| table.keys())
            .filter(|dependency| dependency.starts_with("flowlift"))
            .cloned()
            .collect();
        arrows.insert(name, dependencies);
    }
    arrows
}

fn read_toml(path: &Path) -> toml::Table {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn every_arrow_is_one_that_the_design_draws() {
    let allowed: BTreeMap<&str, &[&str]> = BTreeMap::from([
        ("flowlift-bus", &[][..]),
        ("flowlift-driver", &["flowlift-bus"][..]),
        ("flowlift-flow", &[][..]),
        ("flowlift-port", &[][..]),
        ("flowlift-softpath", &["flowlift-flow", "flowlift-port"][..]),
        ("flowlift-sim", &["flowlift-bus", "flowlift-port"][..]),
        ("flowlift-ovs", &["flowlift-flow"][..]),
        ("flowlift-preload", &["flowlift-ovs"][..]),
        ("flowlift-offload", &["flowlift-driver", "flowlift-flow"][..]),
        (
            "flowlift-dpdk",
            &["flowlift-bus", "flowlift-driver", "flowlift-flow", "flowlift-offload", "flowlift-sim"][..],
        ),
        (
            "flowlift",
            &[
                "flowlift-bus",
                "flowlift-driver",
                "flowlift-flow",
                "flowlift-offload",
                "flowlift-ovs",
                "flowlift-port",
                "flowlift-sim",
                "flowlift-softpath",
            ][..],
        ),
    ]);
    for (from, to) in arrows() {
        if from == "flowlift-tests" {
            continue;
        }
        let allowed = allowed
            .get(from.as_str())
            .unwrap_or_else(|| panic!("{from} is new: draw its arrows in ARCHITECTURE.md and here"));
        for to in &to {
            assert!(allowed.contains(&to.as_str()), "{from} must not know {to} (ARCHITECTURE.md)");
        }
    }
}

#[test]
fn the_planner_knows_of_the_driver_only_what_a_nic_is() {
    for file in rust_files(&root().join("offload/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(
                !line.contains("flowlift_driver::") || line.contains("flowlift_driver::nic"),
                "{}:{}: the planner sees flowlift_driver::nic alone: {line}",
                file.display(),
                number + 1
            );
        }
    }
}

#[test]
fn the_softpath_knows_of_ports_only_what_a_frame_leaves_to_do() {
    for file in rust_files(&root().join("softpath/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        for (number, line) in text.lines().enumerate() {
            assert!(
                !line.contains("flowlift_port::")
                    || line.contains("flowlift_port::offload")
                    || line.contains("flowlift_port::Offload"),
                "{}:{}: the softpath sees flowlift_port::offload alone: {line}",
                file.display(),
                number + 1
            );
        }
    }
}

#[test]
fn unsafe_lives_where_the_design_says() {
    let homes = [
        "driver/bus/src",
        "driver/src/vfio",
        "offload/dpdk/src",
        "offload/preload/src",
        "softpath/port/src",
        "softpath/src/table/rcu.rs",
        "softpath/src/isa.rs",
    ];
    for file in rust_files(&root()) {
        let relative = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if relative.starts_with("target") || relative == "tests/tests/arrows.rs" {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let uses = text.lines().any(|line| {
            let code = line.split("//").next().unwrap_or("");
            ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe trait "].iter().any(|word| code.contains(word))
        });
        assert!(
            !uses || homes.iter().any(|home| relative.starts_with(home)),
            "{relative} has unsafe code; its homes are {homes:?}"
        );
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(".rs") {
                files.push(path);
            }
        }
    }
    assert!(!files.is_empty(), "no Rust files below {}", folder.display());
    files
}
