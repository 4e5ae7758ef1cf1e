//! A list against the plainest model of one: every line is kept, and asked one after the other.

use std::fmt::Write;

use proptest::prelude::*;

use super::*;

/// One entry, told so that a line and an answer can be made of it.
#[derive(Clone, Debug)]
struct Said {
    kind: u8,
    of: u8,
    name: u8,
    time: u8,
    until: Option<u8>,
}

impl Said {
    fn line(&self) -> String {
        let (name, time) = (self.name, at(u64::from(self.time)));
        let mut line = match self.kind {
            0 => format!("{{\"token\": \"sha256:{}\"", TokenId([name; 16])),
            1 if self.of == 0 => format!("{{\"jti\": \"j{name}\""),
            1 => format!("{{\"issuer\": \"i{}\", \"jti\": \"j{name}\"", self.of),
            2 => format!("{{\"device\": \"d{name}\""),
            3 => format!("{{\"key\": \"device:d{name}/primary\""),
            4 => format!("{{\"issued_before\": \"{time}\"{}", self.whose()),
            _ if self.of == 3 => format!("{{\"expires_before\": \"{time}\", \"policy\": \"p{name}\""),
            _ => format!("{{\"expires_before\": \"{time}\""),
        };
        if let Some(until) = self.until {
            let _ = write!(line, ", \"until\": \"{}\"", at(u64::from(until)));
        }
        line + "}"
    }

    fn whose(&self) -> String {
        let name = self.name;
        match self.of {
            0 => String::new(),
            1 => format!(", \"device\": \"d{name}\""),
            2 => format!(", \"issuer\": \"i{name}\""),
            _ => format!(", \"policy\": \"p{name}\""),
        }
    }

    /// As semantics has it, word by word.
    fn revokes(&self, facts: &Facts<'_>, now: u64) -> bool {
        let name = |kind: char| format!("{kind}{}", self.name);
        let whose = match self.of {
            0 => true,
            1 => facts.device.as_str() == name('d'),
            2 => facts.issuer == Some(&name('i')),
            _ => facts.policy == Some(&name('p')),
        };
        let time = UnixSeconds(u64::from(self.time));
        let selects = match self.kind {
            0 => facts.token_id == TokenId([self.name; 16]),
            1 => facts.jti == Some(&name('j')) && (self.of == 0 || facts.issuer == Some(&format!("i{}", self.of))),
            2 => facts.device.as_str() == name('d'),
            3 => facts.key.as_str() == format!("device:d{}/primary", self.name),
            4 => whose && facts.issued_at.is_none_or(|at| at < time),
            _ => (self.of != 3 || whose) && facts.expires_at < time,
        };
        selects && self.until.is_none_or(|until| now < u64::from(until))
    }
}

fn at(time: u64) -> UnixSeconds {
    UnixSeconds(time)
}

fn said() -> impl Strategy<Value = Said> {
    (0_u8..6, 0_u8..4, 0_u8..4, 0_u8..8, proptest::option::of(0_u8..8)).prop_map(|(kind, of, name, time, until)| Said {
        kind,
        of,
        name,
        time,
        until,
    })
}

fn text(all: &[Said]) -> String {
    all.iter().map(|said| said.line() + "\n").collect()
}

fn parsed(text: &str) -> RevocationList {
    let (list, bad) = RevocationList::parse(text);
    assert_eq!(bad, [], "{text}");
    list
}

/// A token as numbers tell it.
type Token = (u8, Option<u8>, Option<u8>, Option<u8>, u8, Option<u8>, u8);

fn asked(list: &RevocationList, model: &[Said], token: Token, now: u8) -> (bool, bool) {
    let (name, jti, issuer, policy, device, issued_at, expires_at) = token;
    let [jti, issuer, policy] =
        [(jti, 'j'), (issuer, 'i'), (policy, 'p')].map(|(n, kind)| n.map(|n| format!("{kind}{n}")));
    let device = DeviceId::try_from(&*format!("d{device}")).expect("an id");
    let key = KeyName::new(&format!("device:{device}"), "primary");
    let facts = Facts {
        token_id: TokenId([name; 16]),
        jti: jti.as_deref(),
        issuer: issuer.as_deref(),
        policy: policy.as_deref(),
        device: &device,
        key: &key,
        issued_at: issued_at.map(|at| UnixSeconds(at.into())),
        expires_at: UnixSeconds(expires_at.into()),
    };
    let hit = list.matches(&facts, at(now.into()));
    assert_eq!(hit.is_some(), list.revokes(&facts, at(now.into())));
    (hit.is_some(), model.iter().any(|said| said.revokes(&facts, now.into())))
}

proptest! {
    #[test]
    fn a_list_revokes_what_its_lines_say(
        all in proptest::collection::vec(said(), 0..12),
        token in (0_u8..4, proptest::option::of(0_u8..4), proptest::option::of(0_u8..4), proptest::option::of(0_u8..4),
            0_u8..4, proptest::option::of(0_u8..8), 0_u8..8),
        now in 0_u8..8,
    ) {
        let (ours, theirs) = asked(&parsed(&text(&all)), &all, token, now);
        prop_assert_eq!(ours, theirs);
    }

    #[test]
    fn lines_that_are_appended_make_the_list_that_the_whole_file_makes(
        parts in proptest::collection::vec(proptest::collection::vec(said(), 0..6), 1..5),
        token in (0_u8..4, proptest::option::of(0_u8..4), proptest::option::of(0_u8..4), proptest::option::of(0_u8..4),
            0_u8..4, proptest::option::of(0_u8..8), 0_u8..8),
        now in 0_u8..8,
    ) {
        let mut grown = parsed(&text(&parts[0]));
        for part in &parts[1..] {
            let older = grown.clone();
            grown = grown.with(&parsed(&text(part)));
            prop_assert_eq!(grown.lifted(&older, at(0)), Lifted::default());
            prop_assert_eq!(grown.added_since(&older, 100), parsed_added(&older, &grown));
        }
        let all = parts.concat();
        let whole = parsed(&text(&all));
        prop_assert_eq!((grown.len(), grown.ids()), (whole.len(), whole.ids()));
        prop_assert_eq!((grown.added_since(&whole, 100), whole.added_since(&grown, 100)), Default::default());
        prop_assert_eq!(asked(&grown, &all, token, now), asked(&whole, &all, token, now));
    }

    #[test]
    fn a_list_comes_out_the_same_in_whatever_pieces_it_is_read(
        all in proptest::collection::vec(said(), 0..8),
        cuts in proptest::collection::vec(0_usize..400, 0..6),
    ) {
        let whole = format!("\u{feff}# list\n{}{{\"devise\": 1}}\n\n{}", text(&all), text(&all).trim_end());
        let bytes = whole.as_bytes();
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).chain([0, bytes.len()]).collect();
        ends.sort_unstable();
        let mut reader = ListReader::default();
        ends.windows(2).for_each(|pair| reader.feed(bytes.get(pair[0]..pair[1]).expect("within it")));
        let read = reader.finish();
        prop_assert_eq!((read.lines, read.entries), (whole.lines().count(), all.len() * 2));
        prop_assert_eq!(read.bad_lines.iter().map(|bad| bad.line).collect::<Vec<_>>(), [all.len() + 2]);
        prop_assert_eq!(read.ends_within_line, !whole.ends_with('\n'));
        prop_assert_eq!(read.list.ids(), parsed(&text(&all)).ids());
    }
}

/// What was added, told by a list that shares nothing with the older one.
fn parsed_added(older: &RevocationList, grown: &RevocationList) -> Added {
    let mut all = LayerBuilder::default();
    [&grown.base, &grown.recent].into_iter().for_each(|layer| layer.each(&mut |entry| all.put(entry)));
    let apart = RevocationList::of_layer(all.build());
    apart.added_since(older, 100)
}

#[test]
fn a_list_of_very_many_devices_keeps_no_names_and_loses_none() {
    let line = |n: u32| format!("{{\"device\": \"dev-{n}\"}}\n");
    let few: String = (0..100).map(line).collect();
    let many: String = (0..20_000).map(line).collect();
    let (few, many) = (parsed(&few), parsed(&many));
    assert_eq!((few.len(), many.len()), (100, 20_000));
    assert!(many.base.keeps_hashes() && !few.base.keeps_hashes());
    assert_eq!(many.lifted(&few, at(0)), Lifted::default());
    assert_eq!((few.lifted(&many, at(0)).count, few.with(&many).len()), (19_900, 20_000));
    let more = many.with(&parsed(&line(20_000)));
    assert_eq!(
        (more.len(), more.added_since(&many, 9).devices.len()),
        (20_001, 1),
        "one that is appended has its name"
    );
    assert!(many.added_since(&few, 1_000_000).everybody);
    for (name, revoked) in [("dev-0", true), ("dev-19999", true), ("dev-20000", true), ("dev-20001", false)] {
        let (device, key) = (DeviceId::try_from(name).expect("an id"), KeyName::new("device:x", "primary"));
        let facts = Facts {
            token_id: TokenId([0; 16]),
            jti: None,
            issuer: None,
            policy: None,
            device: &device,
            key: &key,
            issued_at: None,
            expires_at: UnixSeconds(9),
        };
        assert_eq!(more.matches(&facts, at(1)).map(|hit| hit.what), revoked.then(|| format!("the device {name}")));
    }
}

#[test]
fn more_than_a_few_that_are_appended_become_one_with_the_rest() {
    let line = |n: usize| format!("{{\"jti\": \"{n}\"}}\n");
    let mut list = parsed(&line(0));
    let base = list.base.clone();
    list = list.with(&parsed(&(1..=RECENT_MAX).map(line).collect::<String>()));
    assert!(Arc::ptr_eq(&base, &list.base) && list.recent.len() == RECENT_MAX);
    list = list.with(&parsed(&line(RECENT_MAX + 1)));
    assert!(!Arc::ptr_eq(&base, &list.base) && list.recent.len() == 0);
    assert_eq!(list.len(), RECENT_MAX + 2);
}
