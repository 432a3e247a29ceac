//! Paths of Unix sockets: what a dead process left there is replaced, and nothing else.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// Binds a socket of any type at `path` by `bind`. The file of a socket that nobody holds any more is replaced.
///
/// # Errors
/// `AddrInUse` where a socket is held by somebody, `AlreadyExists` where the file is none; else what the system says.
pub fn bind<'p, S>(path: &'p Path, bind: impl Fn(&'p Path) -> io::Result<S>) -> io::Result<S> {
    match bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            // By connect(2) alone, a file is a socket that nobody holds.
            if !fs::symlink_metadata(path)?.file_type().is_socket() {
                let why = "there is a file of that name, and it is no socket";
                return Err(io::Error::new(ErrorKind::AlreadyExists, why));
            }
            if !is_abandoned(path) {
                return Err(error);
            }
            fs::remove_file(path)?;
            bind(path)
        }
        other => other,
    }
}

/// The socket of that file is closed. One of another type than the probe's answers otherwise (unix(7)).
fn is_abandoned(path: &Path) -> bool {
    UnixDatagram::unbound()
        .and_then(|probe| probe.connect(path))
        .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use std::os::unix::net::UnixListener;

    /// Both types of sockets, one after the other.
    fn both(path: &Path) -> [io::Result<()>; 2] {
        [bind(path, UnixListener::bind).map(drop), bind(path, UnixDatagram::bind).map(drop)]
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        // Each leaves its file to the other.
        for result in [both(&path), both(&path)].into_iter().flatten() {
            result.unwrap();
        }
    }

    #[test]
    fn what_is_held_or_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let held = folder.path().join("held");
        let _listener = UnixListener::bind(&held).unwrap();
        assert!(both(&held).iter().all(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::AddrInUse)));
        let _datagrams = UnixDatagram::bind(folder.path().join("datagrams")).unwrap();
        let refused = both(&folder.path().join("datagrams"));
        assert!(refused.iter().all(|r| r.as_ref().is_err_and(|e| e.kind() == ErrorKind::AddrInUse)));

        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            let refused = both(path);
            let is_refusal = |e: &io::Error| e.kind() == ErrorKind::AlreadyExists;
            assert!(refused.iter().all(|r| r.as_ref().is_err_and(is_refusal)), "{path:?}: {refused:?}");
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "precious");
    }
}
