//! A line of a flow dump: whatever parses prints to a line that parses to the same flow, and prints the same again.
#![no_main]

use flowlift_flow::text::{AttrOrder, DumpFlow, NoNames, parse_actions, parse_dump_line, parse_match};
use flowlift_flow::{Action, AttrSet};
use libfuzzer_sys::fuzz_target;

/// The flow with what its text can say. A line that is not verbose leaves out key bits that the mask does not ask for, and
/// the names of attributes that are wildcarded whole.
fn significant(flow: &DumpFlow) -> DumpFlow {
    let mut flow = flow.clone();
    flow.order = AttrOrder::default();
    flow.flow.matching.attrs = AttrSet::default();
    let matching = &mut flow.flow.matching;
    matching.key = matching.mask.apply(&matching.key);
    round(&mut flow.flow.actions);
    flow
}

/// Probabilities as the text has them: a percentage with one decimal, as OVS prints it.
fn round(actions: &mut [Action]) {
    for action in actions {
        match action {
            Action::Sample { probability, actions } => {
                *probability = (1000.0 * f64::from(*probability) / f64::from(u32::MAX)).round() as u32;
                round(actions);
            }
            Action::Clone(actions) | Action::DecTtl { exception: actions } => round(actions),
            Action::CheckPktLen { greater, less_or_equal, .. } => {
                round(greater);
                round(less_or_equal);
            }
            _ => {}
        }
    }
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
