//! The client's side of the control socket, for flowlift's own commands.

use anyhow::{Context, Result, bail};
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
        let stream = UnixStream::connect(path).map_err(|error| {
            let what = match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                    "no daemon there; `flowlift daemon` starts one"
                }
                ErrorKind::PermissionDenied => "only the daemon's user and root may talk to it",
                _ => "cannot connect",
            };
            anyhow::Error::new(error).context(format!("{}: {what}", path.display()))
        })?;
        if !super::is_trusted(&stream) {
            bail!("{}: another user's program serves it", path.display());
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
            (None, Some(Value::String(error))) => bail!("{}", error.trim_end()),
            (None, error) => bail!("an answer with neither result nor error, but {error:?}"),
        }
    }
}
