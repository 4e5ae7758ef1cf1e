use super::*;

const NOW: UnixSeconds = UnixSeconds(1500);

fn list(lines: &str) -> RevocationList {
    let (list, bad) = RevocationList::parse(lines);
    assert_eq!(bad, vec![], "{lines}");
    list
}

fn id(text: &str) -> DeviceId {
    DeviceId::try_from(text).expect(text)
}

/// A token of `pump-17`, issued at 1000, that expires at 2000, with the jti `j1` of the issuer `factory`.
fn check(lines: &str, now: u64) -> Option<String> {
    let (device, key) = (id("pump-17"), KeyName::new("issuer:factory", "k1"));
    let facts = Facts {
        token_id: TokenId([0x9c; 16]),
        jti: Some("j1"),
        issuer: Some("factory"),
        policy: None,
        device: &device,
        key: &key,
        issued_at: Some(UnixSeconds(1000)),
        expires_at: UnixSeconds(2000),
    };
    list(lines).matches(&facts, UnixSeconds(now)).map(|hit| hit.what)
}

#[test]
fn each_kind_of_entry_revokes_what_it_selects_and_nothing_else() {
    let token = "9c".repeat(16);
    for good in [
        r#"{"jti": "j1"}"#,
        r#"{"jti": "j1", "issuer": "factory"}"#,
        &format!(r#"{{"token": "sha256:{token}"}}"#),
        &format!(r#"{{"token": "sha256:{}{token}"}}"#, token.to_uppercase()),
        r#"{"device": "pump-17", "reason": "scrapped", "by": "site desk", "at": "2026-11-21T09:00:00Z"}"#,
        r#"{"key": "issuer:factory/k1"}"#,
        r#"{"issued_before": "1970-01-01T00:16:41Z", "device": "pump-17"}"#,
        r#"{"issued_before": "1970-01-01T00:16:41Z", "issuer": "factory"}"#,
        r#"{"issued_before": "1970-01-01T00:16:41Z"}"#,
        r#"{"expires_before": "1970-01-01T00:33:21Z"}"#,
    ] {
        assert!(check(good, 1500).is_some(), "{good}");
    }
    for bad in [
        r#"{"jti": "j2"}"#,
        r#"{"jti": "j1", "issuer": "other"}"#,
        r#"{"token": "sha256:00000000000000000000000000000000"}"#,
        r#"{"device": "pump-1"}"#,
        r#"{"device": "PUMP-17"}"#,
        r#"{"key": "issuer:factory/k2"}"#,
        r#"{"issued_before": "1970-01-01T00:16:40Z", "device": "pump-17"}"#,
        r#"{"issued_before": "1970-01-01T00:16:41Z", "device": "pump-18"}"#,
        r#"{"issued_before": "1970-01-01T00:16:41Z", "policy": "factory"}"#,
        r#"{"expires_before": "1970-01-01T00:33:20Z"}"#,
        r#"{"expires_before": "1970-01-01T00:33:21Z", "policy": "p"}"#,
        "",
        "# {\"device\": \"pump-17\"}\n\n   \n",
    ] {
        assert_eq!(check(bad, 1500), None, "{bad}");
    }
}

#[test]
fn an_entry_ends_in_the_second_of_its_until() {
    let line = r#"{"device": "pump-17", "until": "1970-01-01T00:25:00Z"}"#;
    assert!(check(line, 1499).is_some());
    assert!(check(line, 1500).is_none());
    let twice = format!("{line}\n{}", r#"{"device": "pump-17"}"#);
    assert!(check(&twice, u64::MAX - 1).is_some(), "the longer one counts");
}

#[test]
fn a_bad_line_is_named_and_the_good_ones_count() {
    for bad in [
        "{",
        "[]",
        "{}",
        r#"{"jti": 1}"#,
        r#"{"jti": ""}"#,
        r#"{"jti": "a", "jti": "b"}"#,
        r#"{"jti": "a", "device": "b"}"#,
        r#"{"issuer": "factory"}"#,
        r#"{"device": "*"}"#,
        r#"{"device": "pump-17", "untill": "2026-12-21T00:00:00Z"}"#,
        r#"{"device": "pump-17", "until": "tomorrow"}"#,
        r#"{"device": "pump-17", "issuer": "factory"}"#,
        r#"{"token": "9c1e"}"#,
        r#"{"token": "sha256:9c1e"}"#,
        r#"{"token": "sha256:+c9c9c9c9c9c9c9c9c9c9c9c9c9c9c9c"}"#,
        r#"{"key": "pump-17/primary"}"#,
        r#"{"key": "device:pump-17"}"#,
        r#"{"issued_before": "2026-11-20T12:00:00Z", "device": "a", "issuer": "b"}"#,
        r#"{"expires_before": "2026-11-20T12:00:00Z", "device": "a"}"#,
        r#"{"device": "pump-17"} {"device": "pump-18"}"#,
    ] {
        let (list, found) = RevocationList::parse(&format!("{{\"device\": \"a\"}}\n{bad}\n{{\"device\": \"b\"}}"));
        assert_eq!(found.len(), 1, "{bad}");
        assert_eq!(found.first().map(|bad| bad.line), Some(2), "{bad}");
        assert_eq!(list.len(), 2, "{bad}");
    }
}

#[test]
fn a_list_with_a_bad_line_lifts_nothing() {
    let old = list("{\"device\": \"a\"}\n{\"jti\": \"j\"}\n{\"token\": \"sha256:00000000000000000000000000000000\"}");
    let (new, bad) = RevocationList::parse("{\"device\": \"b\"}\n{\"jti\": \"j");
    assert_eq!(bad.len(), 1);
    let merged = new.clone().merge_for_safety(&old);
    assert_eq!(merged.len(), 4);
    assert_eq!(merged.lifted(&old, NOW), Lifted::default());
    let lifted = new.lifted(&old, NOW);
    assert_eq!((lifted.count, lifted.ids.len()), (3, 3));
    assert_eq!(merged.added_since(&old, 9), Added { devices: vec![id("b")], ..Added::default() });
    assert!(old.added_since(&old, 9).is_empty());
}

#[test]
fn what_is_added_can_be_found_by_index() {
    let old = list(r#"{"device": "a", "until": "2026-01-01T00:00:00Z"}"#);
    let new = list(
        "{\"device\": \"a\"}\n{\"jti\": \"j1\", \"issuer\": \"factory\"}\n{\"jti\": \"j2\"}\n{\"key\": \"policy:p/primary\"}\n{\"issued_before\": \"2026-11-20T12:00:00Z\"}",
    );
    let added = new.added_since(&old, 5);
    assert_eq!(added.devices, [id("a")], "it is revoked for longer");
    assert_eq!(added.keys, [KeyName::new("policy:p", "primary")]);
    assert_eq!((&*added.times, added.jtis.len(), added.tokens.len()), (&[Whose::All] as &[_], 2, 0));
    assert!(added.jtis.contains(&JtiHash::both("factory", "j1")[0]));
    assert!(added.jtis.contains(&JtiHash::both("any", "j2")[1]));
    assert!(!added.everybody && new.added_since(&old, 4).everybody, "beyond that everybody is asked");
}

#[test]
fn an_entry_is_named_by_its_canonical_form_alone() {
    // printf 'device\npump-17' | sha256sum
    let hits = [r#"{"device": "pump-17"}"#, r#"{"reason": "x", "device": "pump-17", "until": "2030-01-01T00:00:00Z"}"#]
        .map(|line| {
            let (device, key) = (id("pump-17"), KeyName::new("device:pump-17", "primary"));
            let facts = Facts {
                token_id: TokenId([0; 16]),
                jti: None,
                issuer: None,
                policy: None,
                device: &device,
                key: &key,
                issued_at: None,
                expires_at: UnixSeconds(0),
            };
            list(line).matches(&facts, UnixSeconds(1)).expect("revoked")
        });
    assert_eq!(hits.each_ref().map(|hit| &*hit.id), ["3ee39ba8", "3ee39ba8"]);
    assert_eq!(hits.each_ref().map(|hit| hit.reason.as_deref()), [None, Some("\"x\"")]);
}
