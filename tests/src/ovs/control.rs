//! A daemon's control socket: what `ovs-appctl` speaks, without a process per command.

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long one command may take. Commands answer in microseconds; this is for a machine under heavy load.
const PATIENCE: Duration = Duration::from_secs(120);

/// A connection to a control socket (JSON-RPC 1.0, ovs-appctl(8)).
pub struct Control {
    stream: UnixStream,
    answers: serde_json::Deserializer<serde_json::de::IoRead<BufReader<UnixStream>>>,
}

#[derive(Deserialize)]
struct Answer {
    result: Option<String>,
    error: Option<Value>,
}

impl Control {
    /// Connects to the socket at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let answers = serde_json::Deserializer::from_reader(BufReader::new(stream.try_clone()?));
        Ok(Self { stream, answers })
    }

    /// Runs a command and gives what it prints.
    pub fn run<A: AsRef<str>>(&mut self, command: &str, args: &[A]) -> Result<String> {
        let params: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let request = json!({ "id": 0, "method": command, "params": params });
        self.stream
            .write_all(request.to_string().as_bytes())
            .with_context(|| format!("sending {command}"))?;
        let answer =
            Answer::deserialize(&mut self.answers).with_context(|| format!("the answer to {command}"))?;
        match (answer.result, answer.error) {
            (Some(result), _) => Ok(result),
            (None, Some(Value::String(error))) => bail!("{command} {params:?}: {}", error.trim()),
            (None, error) => bail!("{command} {params:?}: neither result nor error but {error:?}"),
        }
    }
}
