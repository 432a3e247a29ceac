//! Any stream of bytes to the control socket: each request is answered once, in JSON and with its own id, until one makes no sense;
//! and it does not matter where the stream is cut into reads.
//!
//! The input's first byte says how long the reads are, the rest is the stream.
#![no_main]

use flowlift_agent::control::{Commands, Decoder, Request, answer};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

struct Echo;

impl Commands for Echo {
    fn list(&self) -> &[(&'static str, &'static str)] {
        &[("flowlift/status", "[--json]"), ("flowlift/flows", "[--json]")]
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Result<String, String> {
        let text = format!("{command} {}", arguments.join(" "));
        if arguments.is_empty() { Err(text) } else { Ok(text) }
    }
}

/// The requests in a stream that comes in reads of `len` bytes, and what it ended with.
fn requests(stream: &[u8], len: usize) -> (Vec<Request>, Option<String>) {
    let (mut decoder, mut found) = (Decoder::new(), Vec::new());
    for read in stream.chunks(len) {
        decoder.push(read);
        loop {
            match decoder.next_request() {
                Ok(Some(request)) => found.push(request),
                Ok(None) => break,
                Err(error) => return (found, Some(error.to_string())),
            }
        }
    }
    (found, None)
}

fuzz_target!(|input: &[u8]| {
    let Some((&len, stream)) = input.split_first() else { return };
    let (found, end) = requests(stream, usize::from(len).max(1));
    assert_eq!((&found, &end), (&requests(stream, 4096).0, &requests(stream, 4096).1), "cut elsewhere");
    for request in found {
        let bytes = answer(&request, &Echo);
        let answer: Value = serde_json::from_slice(&bytes).expect("an answer is JSON");
        assert_eq!(answer["id"], request.id, "with the id of its request");
        assert!(answer["result"].is_string() != answer["error"].is_string(), "one of both: {answer}");
    }
});
