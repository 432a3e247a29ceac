//! Tests on sockets and network devices of a namespace of their own: no root, and the host is not touched.

use std::any::type_name;
use std::process::Command;
use std::time::{Duration, Instant};

/// Set in the program that is a test's child.
const INSIDE: &str = "FLOWLIFT_INSIDE_NAMESPACE";

/// Runs `test`, which is a closure in a test function, inside new user and network namespaces: this program once more, with
/// that test alone.
pub(crate) fn in_a_namespace<T: Fn()>(test: T) {
    if std::env::var_os(INSIDE).is_some() {
        return test();
    }
    // The type's name is the path of the closure: program, modules, test.
    let path = type_name::<T>().trim_end_matches("::{{closure}}");
    let name = path.split_once("::").map_or(path, |(_, name)| name);
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare (util-linux) is needed");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{name}: {text}");
}

/// Runs `ip` with these arguments, separated by a space each.
#[allow(dead_code)] // Some tests need a namespace for their sockets only.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) is needed");
    assert!(status.success(), "ip {arguments}");
}

/// Sets devices up, and waits until they send: the kernel begins with that a moment after it gave them a carrier, and drops what
/// is sent before.
#[allow(dead_code)] // As above.
pub(crate) fn up(devices: &[&str]) {
    let set = |device: &&str| ip(&format!("link set {device} up"));
    devices.iter().for_each(set);
    let start = Instant::now();
    let sends = |device: &&str| {
        let shown = Command::new("ip").args(["-o", "link", "show", device]).output().unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        // A TAP device says UNKNOWN.
        text.contains("state UP") || text.contains("state UNKNOWN")
    };
    while !devices.iter().all(sends) {
        assert!(start.elapsed() < Duration::from_secs(60), "{devices:?} do not come up");
        std::thread::sleep(Duration::from_millis(1));
    }
    // Done only when the kernel is done with whatever it does to a link.
    devices.iter().for_each(set);
}
