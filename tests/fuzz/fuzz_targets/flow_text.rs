//! A line of a flow dump: any text is parsed or refused, and whatever parses can be printed and read again, without a
//! panic. That real and generated flows come back equal is for the property tests of softpath/flow: arbitrary lines can
//! say things that Open vSwitch's own text loses (fields under a zero mask, `-m` or not).
#![no_main]

use flowlift_flow::text::{NoNames, parse_actions, parse_dump_line, parse_match};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|line: &str| {
    if let Ok(flow) = parse_dump_line(line, &NoNames) {
        let printed = flow.text(None).to_string();
        if let Ok(again) = parse_dump_line(&printed, &NoNames) {
            let _ = again.text(None).to_string();
        }
    }
    // The parts by themselves take what a line never gets to.
    let _ = parse_match(line, &NoNames);
    let _ = parse_actions(line, &NoNames);
});
