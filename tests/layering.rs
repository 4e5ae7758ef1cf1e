//! The house rules that can be read off the sources: floors, homes of foreign crates, pure modules, sizes of files, and
//! what no test may do.

#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

#[test]
fn every_module_stands_on_a_floor_and_lib_names_them_in_floor_order() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let modules: Vec<String> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").trim_start_matches("(crate) ").strip_prefix("mod "))
        .map(|rest| rest.trim_end_matches(';').to_owned())
        .collect();
    assert!(modules.len() > 10, "lib.rs names its modules: {modules:?}");
    let floors: Vec<usize> = modules.iter().map(|name| floor(name).unwrap_or_else(|| no_floor(name))).collect();
    assert!(floors.is_sorted(), "in floor order: {:?}", modules.iter().zip(&floors).collect::<Vec<_>>());
    for source in sources() {
        assert!(
            source.module == "lib" || source.module == "main" || floor(&source.module).is_some(),
            "{}",
            source.name
        );
    }
}

#[test]
fn a_module_imports_lower_floors_and_its_own_children_only() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| s.module != "lib" && s.module != "main") {
        let own = floor(&source.module).unwrap_or_else(|| no_floor(&source.module));
        for import in imports(source) {
            let Some(theirs) = floor(&import) else { continue };
            if import != source.module && theirs >= own {
                wrong.push(format!("{} (floor {own}) imports {import} (floor {theirs})", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_foreign_crate_is_named_in_its_home_only() {
    let mut wrong = Vec::new();
    for source in sources() {
        for (name, homes) in HOMES {
            let at_home = homes.iter().any(|home| source.name.starts_with(&format!("src/{home}")));
            if !at_home && names_crate(&source.code, name) {
                wrong.push(format!("{} names {name}, whose home is {homes:?}", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_modules_have_no_runtime_file_socket_or_clock() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|s| floor(&s.module).is_some_and(|floor| floor <= PURE_UP_TO)) {
        for word in IMPURE {
            if source.code.contains(word) {
                wrong.push(format!("{} has `{word}`", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_long_file_gives_its_reason_and_none_is_longer_than_a_thousand_lines() {
    let mut wrong = Vec::new();
    for (name, text) in everything() {
        let lines = text.lines().count();
        let reason = text.lines().take_while(|line| line.starts_with("//!")).any(|line| line.contains("lines"));
        if lines > LINES_AT_MOST || (lines > LINES_WITHOUT_REASON && !reason) {
            wrong.push(format!("{name}: {lines} lines"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_test_is_switched_off_and_none_sleeps() {
    let mut wrong = Vec::new();
    let ignored = concat!("#[", "ignore");
    let pauses = [concat!("thread::", "sleep"), concat!("time::", "sleep"), concat!("time.", "sleep(")];
    for (name, text) in everything() {
        let tests = if name.starts_with("src/") { after_tests_begin(&text) } else { &text };
        if text.contains(ignored) {
            wrong.push(format!("{name}: a test that is switched off"));
        }
        if pauses.iter().any(|pause| tests.contains(pause)) {
            wrong.push(format!("{name}: a pause where an observable is to be waited for"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_rules_see_what_they_forbid() {
    let source = |code: &str| Source { name: "src/gate/mod.rs".into(), module: "gate".into(), code: code.into() };
    let seen = |code: &str| imports(&source(code)).into_iter().collect::<Vec<_>>();
    assert_eq!(seen("use crate::shard;"), ["shard"]);
    assert_eq!(seen("use crate::{id::DeviceId, upstream::{a, b}};"), ["id", "upstream"]);
    assert_eq!(seen("pub(crate) fn f(x: crate::journal::Journal) {}"), ["journal"]);
    assert_eq!(seen("use super::shard::Inbox;"), ["shard"]);
    assert!(
        names_crate("use rumqttd::Broker;", "rumqttd") && names_crate("let x: dashmap::DashMap<u8, u8>;", "dashmap")
    );
    assert!(!names_crate("let my_rumqttd = 1;", "rumqttd"));
    assert_eq!(
        code_of("use a; // crate::shard\n/// crate::pump\n#[cfg(test)]\nmod tests { use crate::app; }"),
        "use a; \n\n"
    );
}

/// One file of the program, without comments and tests.
struct Source {
    name: String,
    module: String,
    code: String,
}

fn sources() -> Vec<Source> {
    everything()
        .into_iter()
        .filter(|(name, _)| !name.contains("/tests/") && !name.ends_with("/tests.rs"))
        .filter_map(|(name, text)| {
            let module = name.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs").to_owned();
            Some(Source { code: code_of(&text), module, name })
        })
        .collect()
}

/// Every Rust and Python file of the program and its tests: name and text.
fn everything() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for top in ["src", "tests", "examples", "bench/src", "fuzz/src"] {
        walk(&root().join(top), &mut found);
    }
    assert!(found.len() > 20, "the sources are where they are looked for");
    found.sort();
    found
}

fn walk(folder: &Path, found: &mut Vec<(String, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if !name.contains("node_modules") && !name.contains(".venv") {
                walk(&path, found);
            }
        } else if name.ends_with(".rs") || name.ends_with(".py") {
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|names| names.contains(&module))
}

fn no_floor(module: &str) -> ! {
    panic!("`{module}` stands on no floor: add it to the table of tests/layering.rs")
}

/// Modules of this crate that a file names: `crate::x`, `crate::{x, y}`, and `super::x` where that is the root.
fn imports(source: &Source) -> BTreeSet<String> {
    let inner = source.name.trim_start_matches("src/").trim_end_matches("/mod.rs");
    let to_root = "super::".repeat(inner.split('/').count());
    let mut found = BTreeSet::new();
    for start in ["crate::", to_root.as_str()] {
        for (at, _) in source.code.match_indices(start) {
            let Some((before, after)) = source.code.split_at_checked(at) else { continue };
            if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            let rest = after.strip_prefix(start).unwrap_or_default();
            match rest.strip_prefix('{') {
                Some(list) => found.extend(heads(list)),
                None => found.extend(head(rest)),
            }
        }
    }
    found
}

/// The first name of each entry of a `{…}` list.
fn heads(list: &str) -> Vec<String> {
    let (mut depth, mut entry, mut found) = (0, String::new(), Vec::new());
    for c in list.chars() {
        match c {
            '}' if depth == 0 => break,
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => found.extend(head(&std::mem::take(&mut entry))),
            _ => {}
        }
        entry.push(c);
    }
    found.extend(head(&entry));
    found
}

fn head(text: &str) -> Option<String> {
    let trimmed = text.trim_start_matches([',', ' ', '\n']);
    let name: String = trimmed.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let after = code.get(at + name.len()..).unwrap_or_default();
        let whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"');
        whole && (after.starts_with("::") || (before.ends_with("use ") && after.starts_with([';', ' '])))
    })
}

/// A file without comments and without the tests at its bottom.
fn code_of(text: &str) -> String {
    let tests = after_tests_begin(text);
    let code = text.strip_suffix(tests).unwrap_or(text);
    let mut kept = String::new();
    for line in code.lines() {
        let end =
            if line.trim_start().starts_with("//") { 0 } else { line.find(" // ").map_or(line.len(), |at| at + 1) };
        kept.push_str(line.get(..end).unwrap_or(line));
        kept.push('\n');
    }
    kept
}

/// From `#[cfg(test)]` on, when a module follows it.
fn after_tests_begin(text: &str) -> &str {
    let begin = concat!("#[cfg(", "test)]\nmod ");
    text.find(begin).and_then(|at| text.get(at..)).unwrap_or_default()
}

/// Who stands where: a module imports lower floors and its own children.
const FLOORS: &[&[&str]] = &[
    &["denial", "id", "size", "time", "topic"],
    &["credential", "packet"],
    &["policy", "session"],
    &["gate", "route"],
    &["file"],
    &[
        "audit",
        "clock",
        "delivery",
        "journal",
        "listener",
        "meter",
        "pools",
        "registry",
        "roster",
        "takeovers",
        "upstream",
        "usage",
    ],
    &["connection", "feed", "pump", "shard"],
    &["admin", "token_service"],
    &["config"],
    &["app", "cli"],
];

/// Floors 0 to 3: all they need is an argument.
const PURE_UP_TO: usize = 3;

/// Where a foreign crate may be named.
const HOMES: &[(&str, &[&str])] = &[
    ("rumqttc", &["cli", "upstream/mod.rs", "upstream/rumqttc"]),
    ("rumqttd", &["upstream/embedded"]),
    ("async_nats", &["upstream/nats"]),
    ("nkeys", &["upstream/nats"]),
    ("rmqtt_codec", &["packet"]),
    ("httparse", &["listener"]),
    ("jsonwebtoken", &["credential"]),
    ("listenfd", &["listener"]),
    ("ppp", &["listener"]),
    ("sha1", &["listener"]),
    ("hmac", &["credential", "token_service"]),
    ("sha2", &["audit", "credential", "feed", "token_service"]),
    ("toml_edit", &["config"]),
    ("dashmap", &["registry", "gate", "usage"]),
];

const IMPURE: &[&str] = &[
    "tokio",
    "std::fs",
    "fs::read",
    "fs::write",
    "File::open",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "SystemTime::now",
    "Instant::now",
    "thread::spawn",
    "std::env",
];

const LINES_WITHOUT_REASON: usize = 600;
const LINES_AT_MOST: usize = 1000;
