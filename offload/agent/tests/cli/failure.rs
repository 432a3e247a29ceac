//! What a program that asks for JSON gets when a command fails: one object, of each command that has `--json`.

use crate::common::{Folder, Ran, experiment, flowlift, pcap, succeeds};
use clap::CommandFactory;
use flowlift_agent::cli::Cli;
use serde_json::Value;
use std::collections::BTreeSet;

/// Names of all commands that have `--json`, by the command line's definitions.
fn with_json(command: &clap::Command, name: String) -> BTreeSet<String> {
    let below = command.get_subcommands().filter(|below| !below.is_hide_set());
    let mut found: BTreeSet<String> =
        below.flat_map(|below| with_json(below, format!("{name} {}", below.get_name()))).collect();
    if command.get_arguments().any(|argument| argument.get_long() == Some("json")) {
        found.insert(name);
    }
    found
}

/// The error that a command ends with, which must be all that it says.
fn failure(args: &[&str]) -> Value {
    let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
    let Ran { code, out, err } = flowlift(&args);
    assert_eq!((code, out.as_str()), (2, ""), "flowlift {args:?}: {err}");
    assert_eq!(err.lines().count(), 1, "flowlift {args:?}: more than a line:\n{err}");
    let error: Value =
        serde_json::from_str(&err).unwrap_or_else(|e| panic!("flowlift {args:?}: {e}:\n{err}"));
    let parts = error["error"].as_object().unwrap_or_else(|| panic!("flowlift {args:?}: {error}"));
    let keys: Vec<&str> = parts.keys().map(String::as_str).collect();
    assert_eq!(keys, ["what", "what_to_do", "where", "why"], "flowlift {args:?}");
    let is_text = |part: &Value| part.as_str().is_some_and(|text| !text.is_empty() && !text.contains('\n'));
    assert!(parts.values().all(is_text), "flowlift {args:?}: {error:#}");
    error["error"].clone()
}

#[test]
fn every_command_that_has_json_fails_in_json() {
    let folder = Folder::new();
    let (control, capture) = (folder.path("none.ctl"), folder.path("none.pcap"));
    let flows = folder.write("flows.txt", "in_port(\n");
    // A command, and what a place and a cause or remedy of its error have to say.
    let cases: &[(&[&str], [&str; 2])] = &[
        (&["replay", "--flows", &flows, "--pcap", &capture], ["flows.txt", "line 1"]),
        (&["replay", "--flows", &flows], ["--flows", "flowlift explain"]),
        (&["replay", "--in-port", "p9"], ["--in-port", "--ports p9=NUMBER"]),
        (&["explain", "--flows", &capture], ["none.pcap", "No such file"]),
        (&["explain", "--require", "200"], ["--require 200", "from 0 to 100"]),
        (&["explain", "ufid:1", "--control", &control], ["none.ctl", "`flowlift daemon` starts one"]),
        (&["status", "--control", &control], ["none.ctl", "No such file"]),
        (&["flows", "--control", &control], ["none.ctl", "no daemon there"]),
        (&["ports", "--control", &control], ["none.ctl", "`flowlift daemon` starts one"]),
        (&["nic", "show", "--nic", "vfio-user:/none/sim"], ["vfio-user:/none/sim", "flowlift-sim"]),
        (&["nic", "bind", "nonsense"], ["nic bind", "one looks like 0000:03:00.0"]),
        (&["nic", "bind", "00:1f.7"], ["nic bind", "`flowlift nic list`"]),
        (&["nic", "unbind", "00:1f.7"], ["nic unbind", "there is no PCI function 0000:00:1f.7"]),
        (&["nic", "inspect", "00:1f.7"], ["nic inspect", "there is no PCI function"]),
        (&["bench", "masks", "--masks", "0"], ["--masks 0", "expected is 1 to"]),
        (&["bench", "datapath", "--pcap", &capture, "--flows", &flows], ["none.pcap", "No such file"]),
        (&["status", "--frobnicate"], ["command line", "--frobnicate"]),
        (&["flows", "--hardware", "--software"], ["command line", "cannot be used with"]),
    ];
    let mut met: BTreeSet<String> = BTreeSet::new();
    for (args, [place, text]) in cases {
        let error = failure(args);
        assert!(error["where"].as_str().is_some_and(|w| w.contains(place)), "{args:?}: {place}: {error:#}");
        assert!(error.to_string().contains(text), "{args:?}: {text}: {error:#}");
        met.extend([args[..1].join(" "), args[..2].join(" ")].map(|name| format!("flowlift {name}")));
    }
    // Those whose input cannot be bad fail by a word that they do not know.
    for command in with_json(&Cli::command(), "flowlift".into()).difference(&met) {
        let words: Vec<&str> = command.split(' ').skip(1).chain(["--frobnicate"]).collect();
        let error = failure(&words);
        assert!(error["why"].as_str().is_some_and(|why| why.contains("--frobnicate")), "{error:#}");
        assert!(error["what_to_do"].as_str().is_some_and(|text| text.contains(command)), "{error:#}");
    }
}

#[test]
fn a_capture_that_ends_early_is_told_in_json_after_its_report() {
    let folder = Folder::new();
    let mut capture = pcap(crate::common::MICROSECONDS, &[experiment(0), experiment(1)]);
    capture.pop();
    let capture = folder.write("cut.pcap", capture);
    let flows = folder.write("flows.txt", crate::common::FLOW);
    let Ran { code, out, err } = flowlift(&["replay", "--flows", &flows, "--pcap", &capture, "--json"]);
    let report: Value = serde_json::from_str(&out).expect("a report");
    let error: Value = serde_json::from_str(&err).expect("an error");
    assert_eq!((code, &report["packets"]["total"]), (2, &Value::from(1)));
    assert!(error["error"]["why"].as_str().is_some_and(|why| why.contains("cut.pcap")), "{error:#}");
}

#[test]
fn json_that_is_asked_of_another_program_is_no_json_of_ours() {
    let Ran { code, err, .. } =
        flowlift(&["ovs-run", "--library", "/dev/null", "--", "/none/program", "--json"]);
    assert_eq!((code, err.contains("/none/program") && !err.contains('{')), (2, true), "{err}");
    assert!(succeeds(&["status", "--help", "--json"]).contains("Usage: flowlift status"));
}
