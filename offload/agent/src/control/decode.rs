//! Requests out of a stream of bytes that may be cut anywhere.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Longest request in bytes.
pub const REQUEST_MAX: usize = 64 * 1024;

/// A request.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Request {
    /// Comes back with the answer, whatever it is.
    pub id: Value,
    /// Command.
    pub method: String,
    /// Arguments.
    pub params: Vec<String>,
}

/// A stream that does not go on as requests. Nothing after it can be understood.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Something else than an object.
    #[error("a request begins with {{, not with byte {0:#04x}")]
    NotAnObject(u8),
    /// An object without an end within [`REQUEST_MAX`] bytes.
    #[error("a request is longer than {REQUEST_MAX} bytes")]
    TooLong,
    /// An object that is no request.
    #[error("not a request: {0}")]
    NotARequest(String),
}

/// Collects bytes until they are requests. It looks at each byte once to find an object's end, and parses each object once.
#[derive(Debug, Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Bytes looked at.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes what came next.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// The next request; `None` until more bytes come.
    ///
    /// # Errors
    /// The stream makes no sense; from then on always.
    pub fn next_request(&mut self) -> Result<Option<Request>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.find_end().and_then(|end| end.map(|end| self.take(end)).transpose());
        if let Err(error) = &result {
            self.failed = Some(error.clone());
            self.bytes = Vec::new();
        }
        result
    }

    /// The end of the object that begins the buffer, if it is there.
    fn find_end(&mut self) -> Result<Option<usize>, DecodeError> {
        while let Some(&byte) = self.bytes.get(self.seen) {
            self.seen += 1;
            if self.depth == 0 {
                match byte {
                    b' ' | b'\t' | b'\r' | b'\n' => {
                        self.bytes.drain(..self.seen);
                        self.seen = 0;
                    }
                    b'{' => self.depth = 1,
                    other => return Err(DecodeError::NotAnObject(other)),
                }
                continue;
            }
            if self.seen > REQUEST_MAX {
                return Err(DecodeError::TooLong);
            }
            match (self.in_string, byte) {
                (true, _) if self.escaped => self.escaped = false,
                (true, b'\\') => self.escaped = true,
                (true, b'"') => self.in_string = false,
                (false, b'"') => self.in_string = true,
                (false, b'{' | b'[') => self.depth += 1,
                (false, b'}' | b']') => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(self.seen));
                    }
                }
                _ => {}
            }
        }
        Ok(None)
    }

    fn take(&mut self, end: usize) -> Result<Request, DecodeError> {
        let request = serde_json::from_slice(&self.bytes[..end]);
        self.bytes.drain(..end);
        self.seen = 0;
        request.map_err(|error| DecodeError::NotARequest(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(id: u32, method: &str, params: &[&str]) -> Request {
        let params = params.iter().map(|p| (*p).to_owned()).collect();
        Request { id: json!(id), method: method.into(), params }
    }

    #[test]
    fn requests_cut_anywhere_are_the_same() {
        // As ovs-appctl sends them, and what JSON allows besides.
        let text =
            br#"{"id":0,"method":"list-commands","params":[]} {"params":["a}\"","[\\"],"id":1,"method":"x"}"#;
        let expected = [request(0, "list-commands", &[]), request(1, "x", &["a}\"", "[\\"])];
        for cut in 0..=text.len() {
            let mut decoder = Decoder::new();
            let mut found = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                decoder.push(part);
                while let Some(request) = decoder.next_request().unwrap() {
                    found.push(request);
                }
            }
            assert_eq!(found, expected, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_request_ends_the_stream() {
        for (text, error) in [
            (&b"x"[..], "a request begins with {"),
            (b"[]", "a request begins with {"),
            (b"{]", "not a request"),
            (b"{}", "not a request: missing field"),
            (br#"{"id":0,"method":"x","params":[1]}"#, "not a request: invalid type"),
            (b"{\"\xff\":1}", "not a request"),
        ] {
            let mut decoder = Decoder::new();
            decoder.push(text);
            let first = decoder.next_request().unwrap_err();
            assert!(first.to_string().starts_with(error), "{text:?}: {first}");
            decoder.push(br#"{"id":0,"method":"x","params":[]}"#);
            assert_eq!(decoder.next_request(), Err(first), "nothing after it is believed");
        }
    }

    #[test]
    fn an_object_without_end_is_given_up() {
        let mut decoder = Decoder::new();
        decoder.push(&vec![b'{'; REQUEST_MAX]);
        assert_eq!(decoder.next_request(), Ok(None));
        decoder.push(b"{");
        assert_eq!(decoder.next_request(), Err(DecodeError::TooLong));
    }
}
