//! Holds the pages to the code where that is cheap: files, functions, commands, metrics and tests that they name exist.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

#[test]
fn every_file_that_the_architecture_names_is_there() {
    let pages = ["ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "docs/decisions.md"];
    let mut named = 0;
    for page in pages {
        for path in code_spans(&read(page)).into_iter().filter(|span| is_path(span)) {
            named += 1;
            assert!(root().join(&path).exists(), "{page} names {path}, which is not there");
        }
    }
    assert!(named > 40, "files are named: {named}");
}

#[test]
fn every_function_on_the_walks_is_there() {
    let text = read("ARCHITECTURE.md");
    let (mut rows, mut named_so_far) = (0, String::new());
    for line in text.lines() {
        if !line.starts_with("| ") {
            continue;
        }
        let spans = code_spans(line);
        // A function stands in a file that its row names, or one above it.
        for path in spans.iter().filter(|span| is_path(span) && span.ends_with(".rs")) {
            named_so_far.push_str(&read(path));
        }
        if !line.contains('→') {
            continue;
        }
        rows += 1;
        for span in spans.iter().filter(|span| !is_path(span)) {
            let name = span.rsplit("::").next().unwrap();
            let is_there = ["fn", "struct", "enum"].iter().any(|kind| {
                [" ", "(", "<", "{"].iter().any(|end| named_so_far.contains(&format!("{kind} {name}{end}")))
            });
            assert!(is_there, "ARCHITECTURE.md names {span}, which is in no file that the walks have named so far");
        }
    }
    assert!(rows > 10, "the walks are tables");
}

#[test]
fn every_command_that_is_named_is_one_that_help_knows() {
    let known = commands();
    assert!(known.contains_key("pub") && known["token"].contains("mint"), "help is read: {known:?}");
    let mut named = 0;
    for (page, text) in pages() {
        for (command, sub) in commands_named(&text) {
            named += 1;
            let subs = known.get(&command).unwrap_or_else(|| panic!("{page}: no `tollgate {command}`"));
            if !subs.is_empty() {
                let sub = sub.unwrap_or_default();
                // The bare group stands for all of it.
                assert!(sub.is_empty() || subs.contains(&sub), "{page}: no `tollgate {command} {sub}`");
            }
        }
    }
    assert!(named > 30, "commands are named: {named}");
}

#[test]
fn every_metric_is_told_to_the_operator_and_no_other() {
    let told = words_from(&read("docs/operations.md"), METRIC);
    let told: BTreeSet<String> = told.into_iter().map(|name| name.trim_end_matches("_bucket").to_owned()).collect();
    let meter = read("src/meter.rs");
    let constants = meter.lines().filter(|line| line.starts_with("pub const "));
    let counted: BTreeSet<String> = constants.flat_map(|line| words_from(line, METRIC)).collect();
    assert!(counted.len() > 10, "constants of src/meter.rs: {counted:?}");
    assert_eq!(told, counted);
}

#[test]
fn every_test_that_a_threat_is_met_with_is_there() {
    let tests = tests_by_name();
    let text = read("SECURITY.md");
    let mut rows = 0;
    for row in text.lines().filter(|line| line.starts_with("| T")) {
        rows += 1;
        let [_, _, _, met] = row.split(" | ").collect::<Vec<_>>()[..] else { panic!("not four cells: {row}") };
        for name in code_spans(met).into_iter().filter(|name| name.contains('_') && !is_path(name)) {
            assert!(tests.contains(&name), "SECURITY.md names the test {name}, which is not there");
        }
    }
    assert_eq!(rows, THREATS);
}

#[test]
fn links_between_pages_lead_somewhere() {
    for (page, text) in pages() {
        let folder = Path::new(&page).parent().unwrap().to_owned();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = target.split('#').next().unwrap();
            if !target.is_empty() && !target.contains("://") {
                assert!(root().join(&folder).join(target).exists(), "{page} links to {target}");
            }
        }
    }
}

/// Texts between single backticks; blocks of code have none.
fn code_spans(text: &str) -> Vec<String> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

fn is_path(span: &str) -> bool {
    let tops = ["src/", "tests/", "docs/", "bench/", "examples/", ".ci/"];
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    tops.iter().any(|top| span.starts_with(top)) && span.chars().all(plain)
}

/// What follows the program's name: `tollgate`, a blank, a command, and perhaps what stands below it.
fn commands_named(text: &str) -> Vec<(String, Option<String>)> {
    let word = |text: &str| -> String { text.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect() };
    let mut found = Vec::new();
    for rest in text.split("tollgate ").skip(1) {
        let command = word(rest);
        if command.is_empty() || command.starts_with('-') {
            continue;
        }
        let below = rest.strip_prefix(&command).and_then(|rest| rest.strip_prefix(' ')).map(word);
        found.push((command, below.filter(|below| !below.is_empty() && !below.starts_with('-'))));
    }
    found
}

/// Commands by name, with the names below each, from the program's own help.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let below = |path: &[&str]| -> BTreeSet<String> {
        let output = Command::new(env!("CARGO_BIN_EXE_tollgate")).args(path).arg("--help").output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let list = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        list.take_while(|line| !line.is_empty())
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect()
    };
    below(&[]).into_iter().map(|name| (name.clone(), below(&[&name]))).collect()
}

/// Every word that begins so.
fn words_from(text: &str, start: &str) -> BTreeSet<String> {
    let word = |rest: &str| rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect::<String>();
    text.split(start).skip(1).map(|rest| format!("{start}{}", word(rest))).collect()
}

/// Names of all functions in tests, Rust and Python, and of modules with tests.
fn tests_by_name() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, text) in files("src").into_iter().chain(files("tests")) {
        for line in text.lines().map(str::trim_start) {
            let rest = ["fn ", "async fn ", "def "].iter().find_map(|start| line.strip_prefix(start));
            names.extend(rest.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
    }
    names
}

/// What people read: name and text.
fn pages() -> Vec<(String, String)> {
    let mut pages: Vec<_> = files("docs").into_iter().filter(|(name, _)| name.ends_with(".md")).collect();
    for top in ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "ARCHITECTURE.md", "certs/README.md"] {
        pages.push((top.into(), read(top)));
    }
    pages
}

/// Sources and pages below a folder: name and text.
fn files(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root().join(folder)).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.contains("node_modules") && !name.contains(".venv") {
                found.extend(files(&name));
            }
        } else if [".rs", ".py", ".md"].iter().any(|end| name.ends_with(end)) {
            found.push((name.clone(), read(&name)));
        }
    }
    found
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// What all metrics begin with.
const METRIC: &str = "tollgate_";
/// T1 to T46.
const THREATS: usize = 46;
