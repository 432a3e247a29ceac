//! The client's side of the control socket, for flowlift's own commands.

use crate::failure::Tell;
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to a daemon.
pub struct Client {
    stream: UnixStream,
    answers: serde_json::Deserializer<serde_json::de::IoRead<BufReader<UnixStream>>>,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<String>,
    error: Option<Value>,
}

impl Client {
    /// Connects to the daemon's socket.
    ///
    /// # Errors
    /// No daemon, or no right to talk to it.
    pub fn connect(path: &Path) -> Result<Self> {
        let place = path.display();
        let stream = UnixStream::connect(path).or_else(|error| {
            let (what, remedy) = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => (
                    "no daemon there",
                    "`flowlift daemon` starts one; --control or FLOWLIFT_RUNDIR names one that is elsewhere",
                ),
                ErrorKind::PermissionDenied => {
                    ("cannot talk to the daemon", "only the daemon's user and root may talk to it")
                }
                _ => ("cannot connect", "--control names the socket of a daemon"),
            };
            Err(error).context(what).at(place.to_string()).remedy(remedy)
        })?;
        if !super::is_trusted(&stream) {
            return Err(anyhow!("another user's program serves it"))
                .at(place)
                .remedy("only the user's own or root's daemon is asked: --control names its socket");
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let answers = serde_json::Deserializer::from_reader(BufReader::new(stream.try_clone()?));
        Ok(Self { stream, answers })
    }

    /// Runs a command and gives what it prints.
    ///
    /// # Errors
    /// The command's own, or the daemon went away.
    pub fn run(&mut self, command: &str, arguments: &[&str]) -> Result<String> {
        let request = json!({ "id": 0, "method": command, "params": arguments });
        self.stream.write_all(request.to_string().as_bytes()).context("the daemon takes no commands")?;
        let answer = Answer::deserialize(&mut self.answers).context("the daemon does not answer")?;
        match (answer.result, answer.error) {
            (Some(result), _) => Ok(result),
            (None, Some(Value::String(error))) => match error.trim_end().rsplit_once("; ") {
                Some((why, remedy)) => Err(anyhow!("{why}")).remedy(remedy),
                None => bail!("{}", error.trim_end()),
            },
            (None, error) => bail!("an answer with neither result nor error, but {error:?}"),
        }
    }
}
