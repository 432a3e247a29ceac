//! Tests on network devices of a namespace of their own: no root, and the host is not touched.

use std::process::Command;

/// Runs the ignored test `name` of this program inside new user and network namespaces.
pub(crate) fn in_a_namespace(name: &str) {
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .output()
        .expect("unshare (util-linux) is needed");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {text}");
    assert!(text.contains("1 passed"), "{name} did not run: {text}");
}

/// Runs `ip` with these arguments, separated by a space each.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().expect("ip (iproute2) is needed");
    assert!(status.success(), "ip {arguments}");
}
