//! Tests on sockets and network devices of a namespace of their own: no root, and the host is not touched.

use std::any::type_name;
use std::process::Command;

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
