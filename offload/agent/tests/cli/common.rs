//! Running the program, and small inputs for it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A flow that any NIC takes, from port 1 to port 2: an EtherType for experiments.
pub(crate) const FLOW: &str =
    "recirc_id(0),in_port(1),eth_type(0x88b5), packets:0, bytes:0, used:never, actions:2";

/// A file of fixtures/.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// A run of the program.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// The program with these arguments, ready to run.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flowlift"));
    command.args(args).env_remove("FLOWLIFT_LOG");
    command
}

/// Runs the program.
pub(crate) fn flowlift(args: &[&str]) -> Ran {
    let Output { status, stdout, stderr } = command(args).output().expect("the program starts");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: status.code().expect("no signal"), out: text(stdout), err: text(stderr) }
}

/// Runs the program, which must succeed, and gives what it printed.
pub(crate) fn succeeds(args: &[&str]) -> String {
    let ran = flowlift(args);
    assert_eq!(ran.code, 0, "flowlift {args:?}\n{}{}", ran.out, ran.err);
    assert_eq!(ran.err, "", "flowlift {args:?} complains");
    ran.out
}

/// Runs the program with `--json`, which must succeed.
pub(crate) fn json(args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&succeeds(&args)).expect("JSON")
}

/// Runs the program, which must refuse with exit code 2, print nothing, and say each of `wanted` in its message.
pub(crate) fn refuses(args: &[&str], wanted: &[&str]) {
    let ran = flowlift(args);
    assert_eq!(ran.code, 2, "flowlift {args:?}\n{}{}", ran.out, ran.err);
    assert_eq!(ran.out, "", "flowlift {args:?} prints although it refuses");
    for want in wanted {
        assert!(ran.err.contains(want), "flowlift {args:?}: expected '{want}' in:\n{}", ran.err);
    }
    assert!(!ran.err.contains("panicked"), "{}", ran.err);
}

/// A number in a JSON document, by JSON pointer.
pub(crate) fn number(document: &Value, pointer: &str) -> u64 {
    let found = document.pointer(pointer).and_then(Value::as_u64);
    found.unwrap_or_else(|| panic!("no number {pointer} in {document:#}"))
}

/// Files for one test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// The path of a file in it.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    /// Writes a file; gives its path.
    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.path().join(name), bytes).expect("a file");
        self.path(name)
    }
}

/// A frame of the EtherType that [`FLOW`] matches, with this payload byte.
pub(crate) fn experiment(payload: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.resize(60, payload);
    frame
}

/// Little-endian words.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A pcap file: `magic` says the unit of the fractions of seconds. Frame n is from second n, fraction 7.
pub(crate) fn pcap(magic: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut out = words(&[magic, 0x0004_0002, 0, 0, 65535, 1]);
    for (n, frame) in frames.iter().enumerate() {
        out.extend(words(&[n as u32, 7, frame.len() as u32, frame.len() as u32]));
        out.extend(frame);
    }
    out
}

/// Magic numbers of pcap.
pub(crate) const MICROSECONDS: u32 = 0xa1b2_c3d4;
pub(crate) const NANOSECONDS: u32 = 0xa1b2_3c4d;

/// A pcapng file with one interface of each name; frames with the number of their interface.
pub(crate) fn pcapng(interfaces: &[&str], frames: &[(u32, Vec<u8>)]) -> Vec<u8> {
    let block = |kind: u32, body: Vec<u8>| {
        let length = body.len() as u32 + 12;
        [words(&[kind, length]), body, words(&[length])].concat()
    };
    let padded = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let mut out = block(0x0a0d_0d0a, words(&[0x1a2b_3c4d, 1, u32::MAX, u32::MAX]));
    for name in interfaces {
        // Link type Ethernet; option 2 is if_name, 0 ends the options.
        let option = words(&[2 | (name.len() as u32) << 16]);
        out.extend(block(1, [words(&[1, 65535]), option, padded(name.as_bytes()), words(&[0])].concat()));
    }
    for (interface, frame) in frames {
        let length = frame.len() as u32;
        out.extend(block(6, [words(&[*interface, 0, 1, length, length]), padded(frame)].concat()));
    }
    out
}
