//! Where daemons of one network namespace leave for each other what has to outlive them.
//!
//! Datapaths, ports and flows are of a network namespace: a device of the same name or index in another one is another device. So
//! each namespace has a folder of its own, named after its inode, and each file in it says whose it is, since the kernel gives the
//! number of a namespace that is gone to a new one, and all numbers anew when the host is restarted.

use crate::failure::Tell;
use anyhow::{Context, Result};
use flowlift_port::namespace;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Where the kernel tells which start of the host this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// See the module's head.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
    owner: String,
}

impl StateDir {
    /// That of this thread's network namespace, below `folder`; it is made if it is not there.
    ///
    /// # Errors
    /// The folder cannot be made, or the system does not tell the namespace.
    pub fn open(folder: &Path) -> Result<Self> {
        let inode = fs::metadata("/proc/self/ns/net").context("cannot tell the network namespace")?.ino();
        let path = folder.join(format!("netns-{inode}"));
        fs::create_dir_all(&path)
            .context("cannot make the folder of the daemon's state")
            .at(path.display())
            .remedy("the daemon needs root; FLOWLIFT_RUNDIR names another folder")?;
        let boot = fs::read_to_string(BOOT_ID).with_context(|| format!("cannot read {BOOT_ID}"))?;
        let cookie = namespace::cookie().context("cannot tell the network namespace")?;
        Ok(Self { path, owner: owner(boot.trim(), inode, cookie) })
    }

    /// A file of this name in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Which start of the host and network namespace this is; no other one ever has the same text.
    pub fn owner(&self) -> &str {
        &self.owner
    }
}

fn owner(boot: &str, inode: u64, cookie: u64) -> String {
    format!("boot {boot}, network namespace {inode}, cookie {cookie}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn one_namespace_is_always_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (StateDir::open(folder.path()).unwrap(), StateDir::open(folder.path()).unwrap());
        assert_eq!((one.owner(), one.file("x")), (two.owner(), two.file("x")));
        assert!(one.file("x").parent().unwrap().is_dir());
        assert!(!one.owner().contains("cookie 0"), "this kernel has cookies: {}", one.owner());
    }

    #[test]
    fn two_namespaces_share_nothing() {
        const FOLDER: &str = "FLOWLIFT_TEST_STATE_DIR";
        if let Some(folder) = std::env::var_os(FOLDER) {
            println!("owner: {}", StateDir::open(Path::new(&folder)).unwrap().owner());
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let ours = StateDir::open(folder.path()).unwrap();
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "daemon::state_dir::tests::two_namespaces_share_nothing", "--nocapture"])
            .env(FOLDER, folder.path())
            .output()
            .expect("unshare (util-linux) is needed");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("owner: boot "), "{output:?}");
        assert!(!text.contains(ours.owner()), "{text}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
