//! What a command that could not do its work says: what, where, why, and what to do about it, as text or as JSON.
//!
//! Errors are chains, the outermost first. [`Tell`] adds to one where it happened and what to do about it; both are links of
//! the chain, so that nothing has to be parsed out of messages.

use flowlift_driver::bind::BindError;
use serde::Serialize;
use serde_json::json;
use std::error::Error;
use std::fmt::{self, Display};

/// An error with the place where it happened: a file and its line, a socket, a device, an option.
#[derive(Debug, thiserror::Error)]
#[error("{place}")]
struct Placed {
    place: String,
    source: anyhow::Error,
}

/// An error with what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{remedy}")]
struct Remedied {
    remedy: String,
    source: anyhow::Error,
}

/// Tells more of an error.
pub trait Tell<T> {
    /// Where it happened.
    ///
    /// # Errors
    /// The same one, with the place.
    fn at(self, place: impl Display) -> anyhow::Result<T>;

    /// What to do about it, a sentence without its end.
    ///
    /// # Errors
    /// The same one, with the remedy.
    fn remedy(self, remedy: impl Display) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Tell<T> for Result<T, E> {
    fn at(self, place: impl Display) -> anyhow::Result<T> {
        self.map_err(|source| Placed { place: place.to_string(), source: source.into() }.into())
    }

    fn remedy(self, remedy: impl Display) -> anyhow::Result<T> {
        self.map_err(|source| Remedied { remedy: remedy.to_string(), source: source.into() }.into())
    }
}

/// An error as a person or a program reads it. The names of the fields are those of the JSON object, and stay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What could not be done.
    pub what: String,
    /// The place: file and line, socket, device, option; the command if nothing smaller is at fault.
    #[serde(rename = "where")]
    pub place: String,
    /// The cause.
    pub why: String,
    /// What to do about it.
    pub what_to_do: String,
}

impl Failure {
    /// Of the error with which a command ended; `command` is its name, as in `flowlift nic show`.
    pub fn of(command: &str, error: &anyhow::Error) -> Self {
        let Parts { places, mut messages, remedies } = Parts::of(error);
        let cause = if messages.len() > 1 { messages.split_off(1) } else { std::mem::take(&mut messages) };
        Self {
            what: messages.pop().unwrap_or_else(|| format!("{command} failed")),
            place: or(places.join(": "), || command.to_owned()),
            why: cause.join(": "),
            what_to_do: or(remedies.join("; "), || see_help(command)),
        }
    }

    /// Of a command line that says nothing that can be done.
    pub fn of_usage(command: &str, error: &clap::Error) -> Self {
        let text = error.render().to_string();
        // The first paragraph is the error, the others are tips and the usage.
        let why = text.split("\n\n").next().unwrap_or(&text).trim_start_matches("error: ");
        let why: Vec<&str> = why.lines().map(str::trim).collect();
        Self {
            what: format!("{command} failed"),
            place: "command line".into(),
            why: why.join(" "),
            what_to_do: see_help(command),
        }
    }
}

/// JSON on one line: `{"error": {...}}`.
impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        json!({ "error": self }).fmt(f)
    }
}

/// An error in one line, for a person: where, what, why, and then what to do.
pub fn text(error: &anyhow::Error) -> String {
    let Parts { mut places, messages, remedies } = Parts::of(error);
    places.extend(messages);
    [vec![places.join(": ")], remedies].concat().join("; ")
}

/// What an error's chain says.
struct Parts {
    places: Vec<String>,
    messages: Vec<String>,
    remedies: Vec<String>,
}

impl Parts {
    fn of(error: &anyhow::Error) -> Self {
        let mut parts = Self { places: Vec::new(), messages: Vec::new(), remedies: Vec::new() };
        for link in error.chain() {
            if let Some(placed) = link.downcast_ref::<Placed>() {
                parts.places.push(placed.place.clone());
            } else if let Some(remedied) = link.downcast_ref::<Remedied>() {
                parts.remedies.push(remedied.remedy.clone());
            } else {
                let message = link.to_string();
                // Some errors of libraries have their cause in their own message.
                if !parts.messages.last().is_some_and(|last| last.ends_with(&message)) {
                    parts.messages.push(message);
                }
                parts.remedies.extend(remedy_of(link));
            }
        }
        parts
    }
}

/// The remedy that an error of a library knows.
fn remedy_of(error: &(dyn Error + 'static)) -> Option<String> {
    error.downcast_ref::<BindError>().and_then(BindError::remedy).map(str::to_owned)
}

fn see_help(command: &str) -> String {
    format!("`{command} --help` says what it needs")
}

fn or(text: String, other: impl FnOnce() -> String) -> String {
    if text.is_empty() { other() } else { text }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn an_error_is_told_in_parts_and_in_a_line() {
        let error = Err::<(), _>(anyhow!("disk full"))
            .context("cannot write")
            .at("/tmp/F")
            .remedy("make room")
            .context("captures")
            .unwrap_err();
        assert_eq!(text(&error), "/tmp/F: captures: cannot write: disk full; make room");
        let failure = Failure::of("flowlift replay", &error);
        assert_eq!(
            failure.to_string(),
            r#"{"error":{"what":"captures","what_to_do":"make room","where":"/tmp/F","why":"cannot write: disk full"}}"#
        );
    }

    #[test]
    fn an_error_of_one_message_has_all_parts() {
        let failure = Failure::of("flowlift ports", &anyhow!("no"));
        let told = [&*failure.what, &failure.place, &failure.why, &failure.what_to_do];
        let help = "`flowlift ports --help` says what it needs";
        assert_eq!(told, ["flowlift ports failed", "flowlift ports", "no", help]);
        assert_eq!(text(&anyhow!("no")), "no");
    }
}
