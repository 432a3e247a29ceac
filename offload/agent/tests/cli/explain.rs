//! `flowlift explain` and `flowlift nic show`.

use crate::common::{FLOW, Folder, fixture, flowlift, json, number, refuses, succeeds};

#[test]
fn each_flow_has_a_verdict_and_each_refusal_a_reason() {
    let explained = json(&["explain"]);
    let flows = explained["flow_table"].as_array().expect("flows");
    assert_eq!(number(&explained, "/flows/total"), flows.len() as u64);
    for flow in flows {
        let hardware = flow["state"] == "hardware";
        assert_eq!(hardware, flow.get("reason").is_none(), "{flow:#}");
    }
    let sum: u64 =
        ["hardware", "software", "refused"].iter().map(|k| number(&explained, &format!("/flows/{k}"))).sum();
    assert_eq!(sum, number(&explained, "/flows/total"));
    let percent = explained["percent"].as_f64().expect("a percentage");
    let expected = number(&explained, "/flows/hardware") as f64 * 100.0 / flows.len() as f64;
    assert!((percent - expected).abs() < 1e-9, "{percent} and {expected}");
    let reasons: u64 =
        explained["reasons"].as_array().expect("reasons").iter().map(|r| number(r, "/flows")).sum();
    assert_eq!(reasons, number(&explained, "/flows/software"));
}

#[test]
fn a_dry_run_promises_what_a_run_does() {
    let states = |command: &str, profile: &str| -> Vec<(u64, bool)> {
        let report = json(&[command, "--profile", profile]);
        let flows = report["flow_table"].as_array().expect("flows").iter();
        flows.map(|flow| (number(flow, "/line"), flow["state"] == "hardware")).collect()
    };
    for profile in ["standard", "large"] {
        assert_eq!(states("explain", profile), states("replay", profile), "{profile}");
    }
}

#[test]
fn require_decides_the_exit_code() {
    let explained = json(&["explain"]);
    let percent = explained["percent"].as_f64().expect("a percentage");
    for (require, code) in [(0.0, 0), (percent.floor(), 0), (percent.ceil(), 1), (100.0, 1)] {
        let ran = flowlift(&["explain", "--require", &require.to_string()]);
        assert_eq!(ran.code, code, "--require {require} of {percent}");
        assert!(ran.out.contains("85 flows"), "what there is to say is said either way:\n{}", ran.out);
    }
    for bad in ["101", "-1", "NaN", "half"] {
        refuses(&["explain", &format!("--require={bad}")], &["require"]);
    }
}

#[test]
fn a_refused_flow_counts_against_the_percentage() {
    let folder = Folder::new();
    let flows =
        folder.write("flows.txt", format!("{FLOW}\nin_port(2),eth_type(0x88b5), actions:teleport(1)\n"));
    let explained = json(&["explain", "--flows", &flows]);
    assert_eq!(explained["percent"], 50.0);
    assert_eq!(number(&explained, "/flows/refused"), 1);
    assert_eq!(flowlift(&["explain", "--flows", &flows, "--require", "51"]).code, 1);
    let text = succeeds(&["explain", "--flows", &flows, "--require", "50"]);
    assert!(text.contains("line 2") && text.contains("teleport"), "{text}");
}

#[test]
fn dumps_of_every_form_are_the_same_flows() {
    let ports =
        std::fs::read_to_string(fixture("flows/bundled.ports")).expect("ports").trim().replace('\n', ",");
    let count = |file: &str| {
        let path = fixture(&format!("flows/{file}"));
        let explained = json(&["explain", "--flows", path.to_str().expect("UTF-8"), "--ports", &ports]);
        explained["flows"].clone()
    };
    let plain = count("bundled.txt");
    for file in ["bundled.names.txt", "bundled.m.txt", "bundled.m-no-names.txt"] {
        assert_eq!(count(file), plain, "{file}");
    }
}

#[test]
fn nic_show_prints_the_records_of_each_profile() {
    let entries = |profile| {
        let nic = json(&["nic", "show", "--profile", profile]);
        let tables = nic["tables"].as_array().expect("tables");
        assert!(nic["ports"].as_array().is_some_and(|ports| !ports.is_empty()));
        for table in tables {
            assert!(table["fields"].as_array().is_some_and(|fields| !fields.is_empty()), "{table:#}");
            assert!(table["actions"].as_array().is_some_and(|actions| !actions.is_empty()), "{table:#}");
        }
        let text = succeeds(&["nic", "show", "--profile", profile]);
        assert_eq!(text.lines().filter(|line| line.starts_with("table ")).count(), tables.len());
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
        tables.iter().map(|table| number(table, "/max_entries")).sum::<u64>()
    };
    assert_eq!(entries("tiny"), 16);
    assert!(entries("standard") < entries("large"));
    assert!(entries("large") >= 1_000_000);
    assert_eq!(succeeds(&["nic", "show"]), succeeds(&["nic", "show", "--profile", "standard"]));
}
