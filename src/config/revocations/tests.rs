use std::{
    fs::{self, OpenOptions, Permissions},
    io::Write,
    os::unix::fs::{PermissionsExt, symlink},
};

use proptest::prelude::*;

use super::*;
use crate::credential::{Highest, ListKey, ListSigner, WhenStale};

/// A directory with a list in it, and the one that reads it.
struct Site {
    directory: tempfile::TempDir,
    file: RevocationFile,
}

impl Site {
    fn new(content: &[u8]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, state_dir) = (directory.path().join("list"), directory.path().to_owned());
        fs::write(&path, content).expect("written");
        Self { directory, file: RevocationFile { path, rules: None, state_dir, seen: None, proved: None } }
    }

    fn signed_by(keys: &[&Signer]) -> Self {
        let mut site = Self::new(b"");
        let keys = keys.iter().map(|signer| ListKey::from_pem(&signer.public).expect("a key")).collect();
        site.file.rules = Some(ListRules { keys, age_max: None, when_stale: WhenStale::Refuse });
        site
    }

    fn write(&self, content: impl AsRef<[u8]>) {
        fs::write(&self.file.path, content).expect("written");
    }

    fn append(&self, content: &str) {
        let mut file = OpenOptions::new().append(true).open(&self.file.path).expect("open");
        file.write_all(content.as_bytes()).expect("written");
    }

    fn whole(&mut self) -> LoadedRevocations {
        self.file.load(Reading::Whole, None, &mut no_early, NOW).expect("readable")
    }

    /// What a running gateway does when the file changed.
    fn changed(&mut self, in_force: &RevocationList) -> LoadedRevocations {
        self.file.load(Reading::Appended, Some(in_force), &mut no_early, NOW).expect("readable")
    }

    /// All steps of the proof.
    fn verify(&mut self) -> Verified {
        loop {
            match self.file.verify() {
                Verified::Underway => {}
                other => return other,
            }
        }
    }

    fn refused(&mut self) -> String {
        self.file.load(Reading::Whole, None, &mut no_early, NOW).expect_err("refused").what
    }

    /// Takes a list into force as the gateway does.
    fn in_force(&mut self, now: UnixSeconds) -> Result<LoadedRevocations, String> {
        let loaded = self.file.load(Reading::Whole, None, &mut no_early, now).map_err(|mistake| mistake.what)?;
        self.file.remember(loaded.header.as_ref().expect("it is signed")).map_err(|mistake| mistake.what)?;
        Ok(loaded)
    }
}

/// A pair of keys, made once for each test.
struct Signer {
    private: ListSigner,
    public: String,
}

impl Signer {
    fn new() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        let private = ListSigner::from_pem(&pair.serialize_pem()).expect("a key that signs");
        Self { private, public: pair.public_key_pem() }
    }

    fn list(&self, (epoch, sequence): (u64, u64), body: &str) -> String {
        let mut digest = ListDigest::default();
        digest.update(body.as_bytes());
        let header = SignedHeader {
            epoch,
            sequence,
            signed_at: UnixSeconds(NOW.0 - 100),
            expires_at: UnixSeconds(NOW.0 + 100),
            entries: body.lines().filter(|line| line.starts_with('{')).count() as u64,
            sha256: digest.so_far(),
        };
        format!("{}\n{body}", self.private.sign(&header).expect("signed"))
    }
}

#[test]
fn good_lines_count_beside_bad_ones_which_are_named() {
    let mut site = Site::new(
        b"\xef\xbb\xbf# a comment\n{\"device\": \"a\"}\n{\"device\": \"b\xff\"}\n{\"jty\": \"x\"}\n{\"jti\": \"y\"}\n",
    );
    let loaded = site.whole();
    assert_eq!(loaded.list.len(), 2);
    assert_eq!(loaded.bad_lines.iter().filter_map(|bad| bad.line).collect::<Vec<_>>(), [3, 4]);
}

#[test]
fn a_list_that_others_may_write_is_warned_about() {
    let mut site = Site::new(b"");
    for (mode, warnings, is_exposed) in [(0o600, 0, false), (0o644, 0, false), (0o664, 1, false), (0o602, 1, true)] {
        fs::set_permissions(&site.file.path, Permissions::from_mode(mode)).expect("set");
        let loaded = site.whole();
        assert_eq!((loaded.warnings.len(), loaded.is_exposed), (warnings, is_exposed), "{mode:o}");
    }
    // A mounted secret is a link with mode 0777: what it leads to counts.
    let link = site.directory.path().join("link");
    fs::set_permissions(&site.file.path, Permissions::from_mode(0o600)).expect("set");
    symlink(&site.file.path, &link).expect("a link");
    site.file.path = link;
    assert!(site.whole().warnings.is_empty());
}

#[test]
fn what_is_no_list_is_an_error() {
    let mut site = Site::new(b"");
    site.file.path = "/nowhere/list".into();
    assert!(site.refused().contains("does not exist"));
    site.file.path = "/dev/zero".into();
    assert!(site.refused().contains("is no file"));
    site.file.path = site.directory.path().to_owned();
    assert!(site.refused().contains("is no file"));
    site.file.path = site.directory.path().join("huge");
    File::create(&site.file.path).expect("made").set_len(LIST_BYTES_MAX.0 + 1).expect("sparse");
    assert!(site.refused().contains("larger than"));
}

#[test]
fn lines_that_are_appended_are_all_that_is_read() {
    let mut site = Site::new(b"{\"device\": \"a\"}\n{\"jti\": \"gone\"}\n");
    let first = site.whole();
    site.append("{\"device\": \"b\"}\n# a comment\n{\"devise\": \"c\"}\n");
    let second = site.changed(&first.list);
    assert_eq!((second.reading, second.list.len()), (Reading::Appended, 3));
    assert_eq!(second.bad_lines.iter().filter_map(|bad| bad.line).collect::<Vec<_>>(), [5]);
    assert_eq!(site.verify(), Verified::Intact);
    site.append("{\"device\": \"d\"}\n");
    let third = site.changed(&second.list);
    assert_eq!((third.reading, third.list.len(), third.bad_lines.len()), (Reading::Appended, 4, 1));
    // The bad line is mended, and a good one taken out: another file.
    site.write("{\"device\": \"a\"}\n{\"device\": \"b\"}\n{\"device\": \"c\"}\n{\"device\": \"d\"}\n");
    let fourth = site.changed(&third.list);
    assert_eq!((fourth.reading, fourth.list.len(), fourth.bad_lines.len()), (Reading::Whole, 4, 0));
    assert_eq!(fourth.list.lifted(&third.list, NOW).count, 1);
}

#[test]
fn a_change_before_lines_that_were_appended_is_found() {
    let filler = "# filler\n".repeat(10_000);
    let mut site = Site::new(format!("{{\"device\": \"a\"}}\n{filler}").as_bytes());
    let first = site.whole();
    // In place, far before the end, together with lines that are appended: the end alone does not tell.
    let in_place = OpenOptions::new().write(true).open(&site.file.path).expect("open");
    in_place.write_all_at(b"{\"device\": \"z\"}\n", 0).expect("written");
    site.append("{\"device\": \"b\"}\n");
    let second = site.changed(&first.list);
    assert_eq!((second.reading, second.list.len()), (Reading::Appended, 2));
    assert_eq!(site.verify(), Verified::Changed);
    let third = site.changed(&second.list);
    assert_eq!((third.reading, third.list.len()), (Reading::Whole, 2));
    assert_eq!(third.list.lifted(&second.list, NOW).count, 1);
}

#[test]
fn lines_that_are_appended_are_told_before_the_proof_of_those_before_them_goes_on() {
    let steps = usize::try_from(STEP_BYTES).expect("some") / 9 * 3;
    let mut site = Site::new(format!("{{\"device\": \"a\"}}\n{}", "# filler\n".repeat(steps)).as_bytes());
    let mut list = site.whole().list;
    site.append("{\"device\": \"b\"}\n");
    list = site.changed(&list).list;
    assert_eq!(site.file.verify(), Verified::Underway);
    for device in ["c", "d"] {
        site.append(&format!("{{\"device\": \"{device}\"}}\n"));
        assert_eq!(site.file.verify(), Verified::Grown);
        list = site.changed(&list).list;
    }
    assert_eq!(list.len(), 4);
    // What was proved before they came may have changed with them: it is proved again, in a while.
    assert_eq!((site.verify(), site.verify()), (Verified::Later, Verified::Later));
    site.file.proved = None;
    assert_eq!((site.verify(), site.verify()), (Verified::Intact, Verified::Intact));
    // A file that was written to and is no longer than it was may have changed.
    let in_place = OpenOptions::new().write(true).open(&site.file.path).expect("open");
    in_place.write_all_at(b"{\"device\": \"z\"}\n", 0).expect("written");
    let touched = site.changed(&list);
    assert_eq!((touched.reading, touched.list.len()), (Reading::Appended, 4));
    site.file.proved = None;
    assert_eq!(site.verify(), Verified::Changed);
    assert_eq!(site.changed(&list).reading, Reading::Whole);
    // Another file in its place is read as a whole by whoever watches it.
    site.append("{\"device\": \"e\"}\n");
    list = site.changed(&list).list;
    site.file.proved = None;
    let other = site.directory.path().join("other");
    fs::write(&other, "{\"device\": \"a\"}\n").expect("written");
    fs::rename(other, &site.file.path).expect("renamed");
    assert_eq!(site.verify(), Verified::Intact);
    assert_eq!(site.changed(&list).reading, Reading::Whole);
}

#[test]
fn the_end_of_a_large_list_and_what_is_appended_meanwhile_is_told_before_the_rest_is_read() {
    let mut site = Site::new(b"");
    let nothing = site.whole().list;
    let filler = "# filler\n".repeat(100_000);
    let large = format!("{{\"device\": \"first\"}}\n{filler}{{\"device\": \"last\"}}\n{{\"bad\": 1}}\n");
    let path = site.file.path.clone();
    let other = site.directory.path().join("other");
    fs::write(&other, &large).expect("written");
    fs::rename(other, &path).expect("renamed");
    let mut told: Vec<RevocationList> = Vec::new();
    let mut early = |lines: RevocationList| {
        // The next line comes while the list is read.
        let device = ["appended", "and more"].get(told.len());
        told.push(lines);
        let Some(device) = device else { return };
        let mut file = OpenOptions::new().append(true).open(&path).expect("open");
        file.write_all(format!("{{\"device\": \"{}\"}}\n", device.replace(' ', "-")).as_bytes()).expect("written");
    };
    let loaded = site.file.load(Reading::Appended, Some(&nothing), &mut early, NOW).expect("readable");
    assert_eq!((loaded.reading, loaded.list.len(), loaded.bad_lines.len()), (Reading::Whole, 4, 1));
    assert_eq!(told.iter().map(RevocationList::len).collect::<Vec<_>>(), [1, 1, 1]);
    let all = told.iter().fold(nothing, |list, lines| list.with(lines));
    assert_eq!((all.len(), loaded.list.added_since(&all, 9).devices.len()), (3, 1), "all but the first");
}

#[test]
fn what_is_not_whole_lines_at_the_end_is_read_as_a_whole() {
    let mut site = Site::new(b"{\"device\": \"a\"}");
    let first = site.whole();
    assert_eq!(first.list.len(), 1);
    site.append(" \n{\"device\": \"b\"}\n");
    let second = site.changed(&first.list);
    assert_eq!((second.reading, second.list.len(), second.bad_lines.len()), (Reading::Whole, 2, 0));
    // Another file of the same beginning, a shorter one, and one that is the same.
    for content in ["{\"device\": \"a\"} \n{\"device\": \"b\"}\n{\"device\": \"c\"}\n", "{\"device\": \"a\"}\n"] {
        fs::remove_file(&site.file.path).expect("removed");
        site.write("");
        site.write(content);
        let loaded = site.changed(&second.list);
        assert_eq!(loaded.list.len(), content.lines().count());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn appended_pieces_give_what_the_whole_file_gives(
        pieces in proptest::collection::vec(proptest::collection::vec((0_u8..5, 0_u8..20), 0..8), 1..6),
    ) {
        let line = |(kind, n): &(u8, u8)| match kind {
            0 => format!("{{\"jti\": \"{n}\"}}\n"),
            1 => format!("{{\"device\": \"d{n}\", \"until\": \"2030-01-{:02}T00:00:00Z\"}}\n", n + 1),
            2 => format!("{{\"token\": \"sha256:{}\"}}\n", format!("{n:02x}").repeat(16)),
            3 => format!("{{\"bad\": {n}}}\n"),
            _ => format!("# {n}\n\n"),
        };
        let text = |piece: &[(u8, u8)]| piece.iter().map(line).collect::<String>();
        let mut site = Site::new(text(&pieces[0]).as_bytes());
        let mut loaded = site.whole();
        for piece in &pieces[1..] {
            site.append(&text(piece));
            loaded = site.changed(&loaded.list);
            prop_assert_eq!(loaded.reading, Reading::Appended);
        }
        let whole = site.whole();
        prop_assert_eq!((loaded.list.ids(), loaded.list.len()), (whole.list.ids(), whole.list.len()));
        prop_assert_eq!(loaded.bad_lines, whole.bad_lines);
    }
}

#[test]
fn a_signed_list_is_believed_as_it_was_signed_and_no_other() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let mut site = Site::signed_by(&[&Signer::new(), &signer]);
    let good = signer.list((1, 7), "# a comment\n{\"device\": \"a\"}\n{\"jti\": \"b\"}\n");
    site.write(&good);
    let loaded = site.whole();
    assert_eq!((loaded.list.len(), loaded.bad_lines.len(), loaded.warnings.len()), (2, 0, 0));
    assert_eq!(loaded.header.map(|header| header.sequence), Some(7));
    let stamp = loaded.list.stamp().expect("it is signed");
    assert_eq!((stamp.signed_at, stamp.refuse_from), (UnixSeconds(NOW.0 - 100), UnixSeconds(NOW.0 + 100)));

    let (_, unsigned) = good.split_once('\n').expect("a header");
    let cut_off = good.strip_suffix("{\"jti\": \"b\"}\n").expect("its last line");
    for (content, why) in [
        (unsigned.to_owned(), "not signed"),
        (String::new(), "not signed"),
        (cut_off.to_owned(), "changed or cut off"),
        (good.trim_end().to_owned(), "changed or cut off"),
        (format!("{good}{{\"device\": \"c\"}}\n"), "changed or cut off"),
        (good.replace("\"a\"", "\"z\""), "changed or cut off"),
        (good.replace("sequence=7", "sequence=8"), "signature is not that of"),
        (good.replace("epoch=1", "epoch=2"), "signature is not that of"),
        (good.replace("entries=2", "entries=1"), "signature is not that of"),
        (good.replace("epoch=1", "epoch=01"), "no header"),
        (good.replace(" v1 ", " v2 "), "format"),
        (good.replace(" v1 ", " v1  "), "no header"),
        (good.replace("signature=", "signature=A"), "signature is not that of"),
        (good.replace('\n', " "), "has no end"),
        (format!("\u{feff}{good}"), "not signed"),
        (format!("\n{good}"), "not signed"),
        (stranger.list((1, 8), "{\"device\": \"a\"}\n"), "which `revocation_keys` does not name"),
    ] {
        site.write(&content);
        let said = site.refused();
        assert!(said.contains(why), "{why}: {said}: {content}");
    }
}

#[test]
fn a_signed_list_is_never_followed_by_an_older_one() {
    let signer = Signer::new();
    let mut site = Site::signed_by(&[&signer]);
    let body = "{\"device\": \"a\"}\n";
    for (number, content, taken) in [
        ((1, 5), body, true),
        ((1, 5), body, true),
        ((1, 5), "", false),
        ((1, 4), body, false),
        ((0, 9), body, false),
        ((1, 6), "", true),
        ((2, 1), body, true),
        ((1, 7), body, false),
    ] {
        site.write(signer.list(number, content));
        let loaded = site.in_force(NOW);
        assert_eq!(loaded.is_ok(), taken, "{number:?}: {loaded:?}");
        if let Err(said) = loaded {
            assert!(said.contains("was in force already") || said.contains("another list"), "{said}");
        }
    }
    // The number is on the disk: who reads it anew knows it, and where it is damaged nothing is believed.
    let kept = site.directory.path().join("revocations.highest");
    let text = fs::read_to_string(&kept).expect("kept");
    assert_eq!(Highest::parse(&text).map(|highest| (highest.epoch, highest.sequence)), Some((2, 1)));
    fs::write(&kept, text.replace("epoch=2", "epoch=two")).expect("written");
    site.write(signer.list((9, 9), body));
    assert!(site.refused().contains("does not say"));
    fs::remove_file(&kept).expect("removed");
    assert!(site.in_force(NOW).is_ok());
}

#[test]
fn a_signed_list_ends_in_the_second_it_says_and_ages_from_when_it_was_signed() {
    let signer = Signer::new();
    let mut site = Site::signed_by(&[&signer]);
    site.write(signer.list((1, 1), ""));
    let end = UnixSeconds(NOW.0 + 100);
    assert!(site.in_force(UnixSeconds(end.0 - 1)).is_ok());
    assert!(site.in_force(end).expect_err("expired").contains("it expired at"));
    let rules = |age_max: u64, when_stale| Some(Duration::from_secs(age_max)).zip(Some(when_stale));
    for (held, now, stale, refused) in [
        (rules(150, WhenStale::Refuse), NOW.0 + 49, false, false),
        (rules(150, WhenStale::Refuse), NOW.0 + 50, true, true),
        (rules(150, WhenStale::Serve), NOW.0 + 50, true, false),
        (rules(999, WhenStale::Refuse), NOW.0 + 99, false, false),
        (rules(999, WhenStale::Serve), NOW.0 + 100, true, false),
        // A signer whose clock is ahead: its list is not younger than when it came.
        (rules(150, WhenStale::Refuse), NOW.0 - 200, false, false),
    ] {
        let (age_max, when_stale) = held.expect("some");
        let keys = site.file.rules.take().map(|rules| rules.keys).unwrap_or_default();
        site.file.rules = Some(ListRules { keys, age_max: Some(age_max), when_stale });
        let list = site.in_force(UnixSeconds(now)).expect("believed").list;
        let stamp = list.stamp().expect("it is signed");
        assert_eq!((UnixSeconds(now) >= stamp.stale_from, list.is_stale(UnixSeconds(now))), (stale, refused), "{now}");
    }
}

fn no_early(_: RevocationList) {}

/// 2026-11-22, about.
const NOW: UnixSeconds = UnixSeconds(1_795_300_000);
