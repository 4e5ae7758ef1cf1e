//! `tollgate check`: everything that is wrong with the files, at once.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{list::folded, local::harmless};
use crate::config::{Mistake, Report};

/// What `check` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    /// The gateway can start with these files.
    Good,
    /// There are mistakes.
    Bad,
}

/// Writes every mistake and warning, and when there is no mistake what the gateway would do.
///
/// # Errors
/// When `out` cannot be written to.
pub fn check(gateway_toml: &Path, out: &mut impl Write) -> io::Result<Checked> {
    let Report { mistakes, warnings, summary } = Report::of(gateway_toml);
    for mistake in &mistakes {
        out.write_all(shown("", mistake).as_bytes())?;
    }
    for warning in &warnings {
        out.write_all(shown("warning: ", warning).as_bytes())?;
    }
    if !mistakes.is_empty() {
        let number = mistakes.len();
        writeln!(out, "\n{number} mistake{} to correct.", if number == 1 { "" } else { "s" })?;
        return Ok(Checked::Bad);
    }
    let mut last = "";
    for (heading, text) in &summary {
        let shown = if *heading == last { "" } else { *heading };
        writeln!(out, "{shown:<12}{}", harmless(text))?;
        last = heading;
    }
    writeln!(out, "\n{} is good.", gateway_toml.display())?;
    Ok(Checked::Good)
}

/// As [`Mistake`] shows itself, in lines that fit a screen.
fn shown(kind: &str, mistake: &Mistake) -> String {
    let text = format!("{kind}{mistake}");
    let text = harmless(&text);
    let (what, remedy) = text.split_once('\n').unwrap_or((&*text, ""));
    let what = folded(what, CONTINUED);
    format!("{}{}", what.trim_start(), folded(remedy, REMEDY))
}

/// Less than a remedy, so that one is told from the other.
const CONTINUED: &str = "  ";
const REMEDY: &str = "    ";

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    fn site(identities: &str, revocations: &str, listener: &str) -> (tempfile::TempDir, String, Checked) {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, content: &str| {
            let path = directory.path().join(name);
            fs::write(&path, content).expect("written");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("set");
            path
        };
        let [identities, revocations] = [("i.toml", identities), ("r.jsonl", revocations)].map(|(n, c)| write(n, c));
        let text = format!("[gateway]\nidentities = {identities:?}\nrevocations = {revocations:?}\n{listener}");
        let path = write("g.toml", &text);
        let mut out = Vec::new();
        let checked = check(&path, &mut out).expect("written");
        let shown = String::from_utf8(out).expect("text").replace(&*directory.path().to_string_lossy(), "DIR");
        (directory, shown, checked)
    }

    const DEVICE: &str = "[[device]]\nid = 'a'\nprimary_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='\n";

    #[test]
    fn good_files_are_told_what_they_do() {
        let listener = "[[listener]]\nbind = '0.0.0.0:1883'\ntransport = 'tcp'\ninsecure = true\n";
        let (_directory, shown, checked) = site(DEVICE, "{\"device\": \"a\"}\n", listener);
        assert_eq!(checked, Checked::Good, "{shown}");
        let lines: Vec<&str> = shown.lines().collect();
        let expected = [
            "warning: DIR/g.toml:7: tokens cross the network in the clear to 0.0.0.0:1883.",
            "    Use transport = \"tls\" wherever devices can.",
            "listens     0.0.0.0:1883  plain TCP, INSECURE: tokens go in the clear, profile strict",
            "            127.0.0.1:9080  admin API",
            "hub         hub  embedded, 4 connections, window 1000",
            "route       devices/{device}/# to hub",
            "identities  1 device, 0 policies, 0 groups, 0 issuers",
            "revocations 1 entry",
            "",
            "DIR/g.toml is good.",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_long_sentence_is_folded_and_its_remedy_stands_apart() {
        let long =
            "[[listener]]\nbind = '127.0.0.1:1883'\ntransport = 'tcp'\n[credentials]\ntoken_lifetime_max = '32d'\n";
        let (_directory, shown, checked) = site(DEVICE, "", long);
        assert_eq!(checked, Checked::Good, "{shown}");
        assert!(
            shown.contains("\n  ") && shown.contains("\n    Set `token_lifetime_max` under [credentials]"),
            "{shown}"
        );
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    }

    #[test]
    fn entries_of_the_list_that_can_concern_nobody_are_warned_of_with_their_place() {
        let listener = "[[listener]]\nbind = '127.0.0.1:1883'\ntransport = 'tcp'\n";
        let more = "[[policy]]\nname = 'site'\nresource = 'localhost'\n\
                    primary_key = 'IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8='\n";
        let long = format!("{{\"jti\": \"{}\"}}", "j".repeat(129));
        for (entry, named) in [
            (r#"{"device": "nosuch"}"#, "no device nosuch"),
            (r#"{"key": "policy:zzz/primary"}"#, "no policy zzz"),
            (r#"{"key": "policy:site/third"}"#, "no key policy:site/third"),
            (r#"{"key": "group:zzz/primary"}"#, "no group zzz"),
            (r#"{"key": "certificate:zzz/ca"}"#, "no device zzz"),
            (r#"{"key": "device:a/k9"}"#, "no key device:a/k9"),
            (r#"{"jti": "x", "issuer": "zzz"}"#, "no issuer zzz"),
            (r#"{"issued_before": "2026-11-20T12:00:00Z", "issuer": "zzz"}"#, "no issuer zzz"),
            (r#"{"expires_before": "2026-11-20T12:00:00Z", "policy": "zzz"}"#, "no policy zzz"),
            (&long, "has 129 bytes"),
            (r#"{"device": "a"}"#, ""),
            (r#"{"key": "policy:site/secondary"}"#, ""),
            (r#"{"key": "certificate:a/ca"}"#, ""),
            (r#"{"jti": "x", "issuer": "token-service"}"#, ""),
            (r#"{"device": "nosuch", "until": "2020-01-01T00:00:00Z"}"#, ""),
        ] {
            let (_directory, shown, checked) = site(&format!("{DEVICE}{more}"), &format!("# one\n{entry}\n"), listener);
            assert_eq!(checked, Checked::Good, "a warning is no mistake: {shown}");
            let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
            let warned = shown.contains("warning: DIR/r.jsonl:2: the entry revokes nothing");
            assert!(warned != named.is_empty() && shown.contains(named), "{entry}: {shown}");
        }
        let many: String = (0..25).map(|n| format!("{{\"device\": \"ghost-{n}\"}}\n")).collect();
        let (_directory, shown, _) = site(DEVICE, &many, listener);
        assert!(shown.contains("ghost-19") && !shown.contains("ghost-20"), "{shown}");
        assert!(shown.contains("5 more entries revoke nothing"), "{shown}");
    }

    #[test]
    fn every_mistake_of_every_file_is_named() {
        let listener = "[[listener]]\nbind = '0.0.0.0:1883'\ntransport = 'tcp'\n";
        let (_directory, shown, checked) = site("[[device]]\nidd = 'a'\n", "\n{\"jty\": 1}\n", listener);
        assert_eq!(checked, Checked::Bad);
        for place in ["DIR/g.toml:5: plain TCP", "DIR/i.toml:2: unknown key `idd`", "DIR/r.jsonl:2: "] {
            assert!(shown.contains(place), "{place} is not in {shown}");
        }
    }
}
