//! A line of a flow dump: whatever parses prints to a line that parses to the same flow, and prints the same again.
#![no_main]

use flowlift_flow::AttrSet;
use flowlift_flow::text::{AttrOrder, DumpFlow, NoNames, parse_actions, parse_dump_line, parse_match};
use libfuzzer_sys::fuzz_target;

/// The flow without key bits that its mask does not ask for, and without the names of attributes that are wildcarded
/// whole: a line that is not verbose leaves both out.
fn significant(flow: &DumpFlow) -> DumpFlow {
    let mut flow = flow.clone();
    flow.order = AttrOrder::default();
    flow.flow.matching.attrs = AttrSet::default();
    let matching = &mut flow.flow.matching;
    matching.key = matching.mask.apply(&matching.key);
    flow
}

fuzz_target!(|line: &str| {
    if let Ok(flow) = parse_dump_line(line, &NoNames) {
        let printed = flow.text(None).to_string();
        match parse_dump_line(&printed, &NoNames) {
            Ok(again) => {
                assert_eq!(significant(&flow), significant(&again), "printed as {printed}");
                assert_eq!(again.text(None).to_string(), printed);
            }
            Err(error) => panic!("printed as {printed}: {error}"),
        }
    }
    // The parts by themselves take what a line never gets to.
    let _ = parse_match(line, &NoNames);
    let _ = parse_actions(line, &NoNames);
});
