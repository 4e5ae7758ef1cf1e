//! `docs/conformance.md` and the sources: every statement there is, with tests that are there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::Path,
};

use crate::{
    both,
    support::Version::V5,
    wire::{Connect, Peer},
};

/// One line of `statements.txt`.
struct Statement<'a> {
    version: &'a str,
    id: &'a str,
    held: Held<'a>,
    says: &'a str,
}

enum Held<'a> {
    /// By these tests.
    Tests(Vec<&'a str>),
    /// It asks something of clients, and nothing of a server.
    Client,
    /// It asks nothing of this gateway: why.
    NotApplicable(&'a str),
    /// By nothing yet: what is missing.
    Open(&'a str),
}

#[test]
fn every_statement_of_both_versions_stands_in_the_list_once() {
    for (version, count) in [("3.1.1", 137), ("5.0", 251)] {
        let mut sections: BTreeMap<&str, BTreeSet<u32>> = BTreeMap::new();
        let mut listed = 0;
        for statement in statements().filter(|statement| statement.version == version) {
            let id = statement.id.strip_prefix("MQTT-").expect("MQTT-");
            let (section, number) = id.rsplit_once('-').expect("section and number");
            // 3.1.1 prints this one otherwise than all the others.
            let section = if section == "3-8.3" { "3.8.3" } else { section };
            assert!(sections.entry(section).or_default().insert(number.parse().unwrap()), "{id} twice");
            listed += 1;
        }
        assert_eq!(listed, count, "{version}");
        for (section, numbers) in sections {
            // MQTT 5.0 has no MQTT-2.2.1-1.
            let first = if (version, section) == ("5.0", "2.2.1") { 2 } else { 1 };
            let all: BTreeSet<u32> = (first..).take(numbers.len()).collect();
            assert_eq!(numbers, all, "{version} {section}");
        }
    }
}

#[test]
fn every_test_that_holds_a_statement_is_there() {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    for statement in statements() {
        assert!(!statement.says.is_empty(), "{}", statement.id);
        match statement.held {
            Held::Tests(names) => {
                for name in names {
                    let (file, function) = name.split_once("::").expect("file::function");
                    let path = path_of(file);
                    let source = sources.entry(path.clone()).or_insert_with(|| {
                        fs::read_to_string(root().join(&path)).unwrap_or_else(|e| panic!("{path}: {e}"))
                    });
                    assert!(is_test(source, function), "{}: {path} has no test {function}", statement.id);
                }
            }
            Held::NotApplicable(why) | Held::Open(why) => assert!(!why.is_empty(), "{} without a reason", statement.id),
            Held::Client => {}
        }
    }
}

#[test]
fn what_is_not_offered_was_announced() {
    let (gateway, _hub) = both();
    let mut peer = Peer::open(&gateway, V5);
    peer.send(&Connect::new(V5, "d0").packet());
    let connack = peer.next();
    let said: BTreeSet<&str> = statements()
        .filter_map(|s| match s.held {
            Held::NotApplicable(why) => why.split_once("CONNACK: ").map(|(_, said)| said),
            _ => None,
        })
        .collect();
    assert!(!said.is_empty());
    for announcement in said {
        let property: &[u8] = match announcement {
            "Shared Subscription Available 0" => &[0x2A, 0],
            other => panic!("who knows what {other:?} looks like?"),
        };
        let properties = connack.body.get(3..).expect("properties");
        assert!(properties.windows(property.len()).any(|w| w == property), "{announcement}: {connack:x?}");
    }
}

#[test]
fn the_page_is_made_from_the_list() {
    let path = root().join("docs/conformance.md");
    let page = fs::read_to_string(&path).unwrap();
    let mut made = page.clone();
    for version in ["3.1.1", "5.0"] {
        let (begin, end) = (format!("<!-- statements of {version} -->\n"), format!("<!-- end of {version} -->\n"));
        let (head, rest) = made.split_once(&begin).expect("the mark");
        let (_, tail) = rest.split_once(&end).expect("its end");
        made = [head, &begin, &table(version), &end, tail].concat();
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(&path, made).unwrap();
    }
    assert!(page == made, "docs/conformance.md is not that of the list: UPDATE_GOLDEN=1 cargo test --test conformance");
}

fn table(version: &str) -> String {
    let of_version: Vec<Statement<'_>> = statements().filter(|statement| statement.version == version).collect();
    let count = |which: fn(&Held<'_>) -> bool| of_version.iter().filter(|statement| which(&statement.held)).count();
    let mut table = format!(
        "\n{} statements: {} held by tests, {} about clients alone, {} not applicable, {} open.\n\n",
        of_version.len(),
        count(|held| matches!(held, Held::Tests(_))),
        count(|held| matches!(held, Held::Client)),
        count(|held| matches!(held, Held::NotApplicable(_))),
        count(|held| matches!(held, Held::Open(_))),
    );
    table.push_str("| | what it asks | held by |\n|---|---|---|\n");
    for Statement { id, held, says, .. } in &of_version {
        let by = match held {
            Held::Tests(names) => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join("<br>"),
            Held::Client => "the client's alone".to_owned(),
            Held::NotApplicable(why) => format!("not applicable: {why}"),
            Held::Open(what) => format!("open: {what}"),
        };
        writeln!(table, "| {id} | {says} | {by} |").unwrap();
    }
    table + "\n"
}

fn statements() -> impl Iterator<Item = Statement<'static>> {
    STATEMENTS.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut fields = line.splitn(4, " | ");
        let mut next = || fields.next().unwrap_or_else(|| panic!("four fields: {line}"));
        let (version, id, how, says) = (next(), next(), next(), next());
        let held = match how.split_once(": ") {
            _ if how == "client" => Held::Client,
            Some(("n/a", why)) => Held::NotApplicable(why),
            Some(("open", what)) => Held::Open(what),
            _ => Held::Tests(how.split(", ").collect()),
        };
        Statement { version, id, held, says }
    })
}

/// A file of this test by its name alone, any other by its path.
fn path_of(file: &str) -> String {
    if file.contains('/') { file.to_owned() } else { format!("tests/conformance/{file}.rs") }
}

fn is_test(source: &str, function: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let named = format!("fn {function}(");
    lines.iter().enumerate().any(|(at, line)| {
        line.starts_with(&named)
            && lines.iter().take(at).rev().take_while(|above| above.starts_with("#[")).any(|above| *above == "#[test]")
    })
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const STATEMENTS: &str = include_str!("statements.txt");
