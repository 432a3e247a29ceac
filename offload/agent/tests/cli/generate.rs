//! Completions and manual pages.

use crate::common::*;
use std::collections::BTreeSet;
use std::process::Command;

/// Every command as the words that `--help` takes, found by asking `--help` itself.
fn commands(words: &[&str]) -> Vec<Vec<String>> {
    let mut all = vec![words.iter().map(|word| word.to_string()).collect()];
    let mut args = words.to_vec();
    args.push("--help");
    let help = succeeds(&args);
    let Some((_, listed)) = help.split_once("Commands:\n") else { return all };
    for line in listed.lines().take_while(|line| !line.is_empty()) {
        let Some(name) = line.strip_prefix("  ").and_then(|line| line.split_whitespace().next()) else {
            continue;
        };
        // A line of the description of the command above is indented further.
        if line.starts_with("   ") || name == "help" {
            continue;
        }
        let words: Vec<&str> = words.iter().copied().chain([name]).collect();
        all.extend(commands(&words));
    }
    all
}

#[test]
fn every_command_has_a_manual_page_of_its_own() {
    let folder = Folder::new();
    let pages = folder.path("man");
    succeeds(&["man", &pages]);
    let wanted: BTreeSet<String> = commands(&[])
        .into_iter()
        .map(|words| std::iter::once("flowlift".to_owned()).chain(words).collect::<Vec<_>>().join("-") + ".1")
        .chain(["flowlift-sim.1".to_owned()])
        .collect();
    for page in ["flowlift.1", "flowlift-replay.1", "flowlift-nic-bind.1", "flowlift-bench-datapath.1"] {
        assert!(wanted.contains(page), "{page} is none of {wanted:?}");
    }
    let mut found = BTreeSet::new();
    for page in std::fs::read_dir(&pages).expect("a folder") {
        let page = page.expect("a page");
        let text = std::fs::read_to_string(page.path()).expect("UTF-8");
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{:?}", page.path());
        found.insert(page.file_name().into_string().expect("UTF-8"));
    }
    assert_eq!(found, wanted);
    assert_eq!(succeeds(&["man"]), std::fs::read_to_string(format!("{pages}/flowlift.1")).expect("UTF-8"));
    refuses(&["man", "/proc/none"], &["cannot make /proc/none"]);
}

/// What bash would offer for these words; the last one is to be completed.
fn offered(script: &str, words: &[&str]) -> BTreeSet<String> {
    let word = |word: &&str| format!("'{word}'");
    let (list, last) = (words.iter().map(word).collect::<Vec<_>>().join(" "), words.len() - 1);
    let (now, before, program) = (words[last], words[last - 1], words[0]);
    let function = program.replace('-', "__");
    let program = format!(
        ". '{script}'\nCOMP_WORDS=({list})\nCOMP_CWORD={last}\n_{function} {program} '{now}' '{before}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\""
    );
    let done = Command::new("bash").args(["--norc", "-c", &program]).output().expect("bash starts");
    assert!(done.status.success() && done.stderr.is_empty(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_and_options() {
    let folder = Folder::new();
    let script = folder.write("flowlift.bash", succeeds(&["completions", "bash"]));
    let checked = Command::new("bash").args(["-n", &script]).status().expect("bash starts");
    assert!(checked.success());
    assert!(offered(&script, &["flowlift", "re"]).contains("replay"));
    assert!(offered(&script, &["flowlift", "nic", "b"]).contains("bind"));
    assert!(offered(&script, &["flowlift", "replay", "--li"]).contains("--live"));
    let profiles = offered(&script, &["flowlift", "replay", "--profile", ""]);
    assert!(["tiny", "standard", "large"].iter().all(|profile| profiles.contains(*profile)), "{profiles:?}");
    let script = folder.write("flowlift-sim.bash", succeeds(&["completions", "bash", "flowlift-sim"]));
    assert!(offered(&script, &["flowlift-sim", "--so"]).contains("--socket"));
    assert!(offered(&script, &["flowlift-sim", "--profile", ""]).contains("large"));
}

#[test]
fn there_are_completions_for_every_shell_that_is_named() {
    for (shell, sign) in [
        ("bash", "complete -F _flowlift"),
        ("zsh", "#compdef flowlift"),
        ("fish", "complete -c flowlift"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        assert!(succeeds(&["completions", shell]).contains(sign), "{shell}");
        let other = succeeds(&["completions", shell, "flowlift-sim"]);
        assert!(other.contains("flowlift-sim") && other.contains("socket"), "{shell}");
    }
    refuses(&["completions", "cmd"], &["invalid value 'cmd'"]);
}
