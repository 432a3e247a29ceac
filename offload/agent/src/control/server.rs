//! The daemon's side of the control socket.

use super::decode::{Decoder, Request};
use super::is_trusted;
use crate::failure::Tell;
use anyhow::{Context, Result};
use flowlift_port::unix;
use nix::sys::stat::{Mode, umask};
use serde_json::json;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Connections at a time; one more is closed at once.
const CONNECTIONS: usize = 32;
/// How long a client may leave an answer unread.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the socket's clients can ask for.
pub trait Commands: Send + Sync + 'static {
    /// Names, each with its arguments for people.
    fn list(&self) -> &[(&'static str, &'static str)];
    /// Runs a command of the list.
    ///
    /// # Errors
    /// Why there is no result, for people; after a last `; `, what to do about it.
    fn run(&self, command: &str, arguments: &[&str]) -> Result<String, String>;
}

/// The listening socket; its file goes with it.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
}

impl Server {
    /// Opens the socket, mode 0600, and serves it in threads of its own. A socket that nobody serves any more is replaced.
    ///
    /// # Errors
    /// Another daemon serves it, or it cannot be made.
    pub fn start(path: &Path, commands: Arc<dyn Commands>) -> Result<Self> {
        let listener =
            listen(path).context("cannot open the control socket").at(path.display()).remedy(
                "--control names another path, FLOWLIFT_RUNDIR another folder; `flowlift status` asks a daemon that is there",
            )?;
        let serve = move || {
            let open = Arc::new(AtomicUsize::new(0));
            for stream in listener.incoming() {
                let Ok(stream) = stream else { continue };
                // The socket's mode says the same; this holds whatever becomes of the file.
                if !is_trusted(&stream) {
                    tracing::warn!("a control connection of another user was refused");
                    continue;
                }
                if open.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
                    open.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (commands, open) = (Arc::clone(&commands), Arc::clone(&open));
                let connection = move || {
                    if let Err(error) = serve(stream, &*commands) {
                        tracing::debug!(%error, "a control connection ended");
                    }
                    open.fetch_sub(1, Ordering::Relaxed);
                };
                if let Err(error) = std::thread::Builder::new().name("control".into()).spawn(connection) {
                    tracing::warn!(%error, "no thread for a control connection");
                }
            }
        };
        std::thread::Builder::new().name("control".into()).spawn(serve)?;
        Ok(Self { path: path.to_path_buf() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Somebody may have tidied up already.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a socket that is its owner's alone, with its folder if that is not there.
pub(crate) fn listen(path: &Path) -> Result<UnixListener> {
    if let Some(folder) = path.parent().filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    // Nobody else may talk to it, not even before its mode is set.
    let before = umask(Mode::S_IRWXG | Mode::S_IRWXO);
    let bound = unix::bind(path, UnixListener::bind);
    umask(before);
    let listener = bound.or_else(|error| match error.kind() {
        ErrorKind::AddrInUse => Err(error).context("another daemon serves it"),
        _ => Err(error.into()),
    })?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves one connection to its end.
fn serve(mut stream: UnixStream, commands: &dyn Commands) -> Result<()> {
    stream.set_write_timeout(Some(PATIENCE))?;
    let (mut decoder, mut bytes) = (Decoder::new(), [0; 4096]);
    loop {
        let len = match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        decoder.push(&bytes[..len]);
        while let Some(request) = decoder.next_request()? {
            stream.write_all(&answer(&request, commands))?;
        }
    }
}

/// The bytes that answer a request.
pub fn answer(request: &Request, commands: &dyn Commands) -> Vec<u8> {
    let answer = match run(request, commands) {
        Ok(result) => json!({ "id": request.id, "result": result, "error": null }),
        // A line, as ovs-appctl prints it.
        Err(error) => json!({ "id": request.id, "result": null, "error": format!("{}\n", error.trim_end()) }),
    };
    answer.to_string().into_bytes()
}

fn run(request: &Request, commands: &dyn Commands) -> Result<String, String> {
    let known = commands.list();
    match request.method.as_str() {
        "list-commands" => {
            let mut all: Vec<_> = known.to_vec();
            all.extend([("list-commands", ""), ("version", "")]);
            all.sort_unstable();
            let lines =
                all.iter().map(|(name, arguments)| format!("  {name:<23} {arguments}").trim_end().to_owned());
            Ok(format!("The available commands are:\n{}\n", lines.collect::<Vec<_>>().join("\n")))
        }
        "version" => Ok(format!("flowlift {}\n", env!("CARGO_PKG_VERSION"))),
        name if known.iter().any(|(known, _)| *known == name) => {
            let arguments: Vec<&str> = request.params.iter().map(String::as_str).collect();
            commands.run(name, &arguments)
        }
        name => Err(format!("{name:?} is not a command; `list-commands` has those that are")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Client;

    struct Echo;

    impl Commands for Echo {
        fn list(&self) -> &[(&'static str, &'static str)] {
            &[("echo", "[WORD...]"), ("fail", "")]
        }
        fn run(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
            if command == "fail" { Err("it failed".into()) } else { Ok(arguments.join(" ")) }
        }
    }

    #[test]
    fn commands_are_answered_and_the_socket_is_the_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/ctl");
        let server = Server::start(&path, Arc::new(Echo)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = Client::connect(&path).unwrap();
        assert_eq!(client.run("echo", &["a", "b c"]).unwrap(), "a b c");
        assert_eq!(client.run("fail", &[]).unwrap_err().to_string(), "it failed");
        assert!(client.run("list-commands", &[]).unwrap().contains("  echo                    [WORD...]\n"));
        let unknown = crate::failure::text(&client.run("nonsense", &[]).unwrap_err());
        assert!(unknown.contains("list-commands"), "{unknown}");
        let second = Server::start(&path, Arc::new(Echo)).unwrap_err();
        assert!(crate::failure::text(&second).contains("another daemon"), "{second:#}");
        drop(server);
        assert!(!path.exists());
        let nobody = crate::failure::text(&Client::connect(&path).err().unwrap());
        assert!(nobody.contains("no daemon there"), "{nobody}");
    }

    #[test]
    fn a_file_that_is_no_socket_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl");
        fs::write(&path, "precious").unwrap();
        let refused = crate::failure::text(&Server::start(&path, Arc::new(Echo)).err().unwrap());
        assert!(refused.contains("no socket") && refused.contains("--control"), "{refused}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn the_socket_of_a_dead_daemon_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ctl");
        drop(UnixListener::bind(&path).unwrap());
        let _server = Server::start(&path, Arc::new(Echo)).unwrap();
        assert_eq!(Client::connect(&path).unwrap().run("echo", &["x"]).unwrap(), "x");
    }
}
