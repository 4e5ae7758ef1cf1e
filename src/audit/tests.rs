use std::{fs, os::unix::fs::PermissionsExt};

use super::{
    files::{ARCHIVES_MAX, HEAD, LOG, LOG_BYTES_MAX, archives},
    *,
};

/// A state directory of its own.
struct Room {
    directory: tempfile::TempDir,
    audit: Audit,
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let audit = Audit::open(directory.path());
        Self { directory, audit }
    }

    fn with(entries: u64) -> Self {
        let room = Self::new();
        (1..=entries).for_each(|n| assert_eq!(room.add(&format!("device:d{n}")).sequence, n));
        room
    }

    fn add(&self, object: &str) -> Recorded {
        let now = UnixSeconds(1_795_251_600);
        self.audit.record(Action::KeyRotated, "root", object, "by hand", now).expect("recorded")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.path(LOG)).expect("read").lines().map(String::from).collect()
    }

    fn write(&self, lines: &[String]) {
        fs::write(self.path(LOG), lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("written");
    }

    /// Where the chain breaks, as `LINE: what`, `end: what` or `good`.
    fn verdict(&self) -> String {
        match self.audit.verify().expect("read").fault {
            None => "good".into(),
            Some(Fault { line: Some(line), what, .. }) => format!("{line}: {what}"),
            Some(Fault { line: None, what, .. }) => format!("end: {what}"),
        }
    }
}

#[test]
fn entries_are_numbered_chained_private_and_hold() {
    let room = Room::with(3);
    let found = room.audit.verify().expect("read");
    assert_eq!((found.entries, found.range, found.fault), (3, Some((1, 3)), None));
    assert_eq!(found.notes, Vec::<String>::new());
    let line = &room.lines()[0];
    assert!(
        line.starts_with(r#"{"sequence":1,"at":"2026-11-21T09:00:00Z","action":"key_rotated","by":"root","#),
        "{line}"
    );
    for name in [LOG, HEAD] {
        assert_eq!(fs::metadata(room.path(name)).expect("there").permissions().mode() & 0o777, 0o600, "{name}");
    }
}

#[test]
fn what_is_said_stays_on_one_line_and_is_bounded() {
    let room = Room::new();
    let long = "é\n".repeat(10_000);
    room.audit.record(Action::Reloaded, &long, &long, &long, UnixSeconds(0)).expect("recorded");
    room.add("after");
    assert_eq!((room.lines().len(), room.verdict()), (2, "good".into()));
    assert!(room.lines()[0].len() < 32 << 10);
}

#[test]
fn a_line_that_was_changed_taken_out_or_put_in_is_named() {
    let changed = |at: usize, change: &dyn Fn(&str) -> String| {
        let room = Room::with(4);
        let mut lines = room.lines();
        lines[at] = change(&lines[at]);
        room.write(&lines);
        room.verdict()
    };
    let other_object = |line: &str| line.replace("device:d", "device:x");
    let other_previous = |line: &str| {
        let (head, tail) = line.rsplit_once(":\"").expect("the last field");
        format!("{head}:\"{}", tail.chars().map(|c| if c == 'a' { 'b' } else { c }).collect::<String>())
    };
    assert_eq!(changed(0, &other_object), "1: this entry was changed after it was written.");
    assert_eq!(changed(2, &other_object), "3: this entry was changed after it was written.");
    assert_eq!(changed(3, &other_object), "4: this entry, the last, was changed after it was written.");
    assert!(changed(1, &other_previous).starts_with("2: this entry was changed"), "{}", changed(1, &other_previous));
    assert_eq!(changed(1, &|_| "{}".into()), "2: this is no entry of the audit log.");

    let without = |gone: &[usize]| {
        let room = Room::with(5);
        let lines = room.lines().into_iter().enumerate().filter(|(at, _)| !gone.contains(at)).map(|(_, line)| line);
        room.write(&lines.collect::<Vec<_>>());
        room.verdict()
    };
    assert_eq!(without(&[1, 2]), "2: entries 2 to 3 are missing before this line.");
    assert_eq!(without(&[0]), "1: the log begins with entry 2, and should with entry 1.");
    assert_eq!(without(&[4]), "end: entries 5 to 5 are missing at the end.");
    assert_eq!(without(&[0, 1, 2, 3, 4]), "end: entries 1 to 5 are missing at the end.");
    let room = Room::with(2);
    let mut lines = room.lines();
    lines.insert(1, lines[0].clone());
    room.write(&lines);
    assert_eq!(room.verdict(), "2: entry 1 stands after entry 1: lines were put in, or are in another order.");
}

#[test]
fn what_is_missing_stays_missing_after_more_was_recorded() {
    let room = Room::with(3);
    let lines = room.lines();
    room.write(&lines[..2]);
    room.add("later");
    assert_eq!(room.verdict(), "3: entries 3 to 3 are missing before this line.");
    fs::remove_file(room.path(LOG)).expect("removed");
    room.add("later still");
    assert_eq!(room.verdict(), "1: the log begins with entry 5, and should with entry 1.");
}

#[test]
fn a_torn_last_line_is_told_mended_and_audited_and_loses_nothing() {
    let room = Room::with(2);
    let whole = fs::read(room.path(LOG)).expect("read");
    for torn in [&b"{"[..], &whole[..whole.len() / 2 - 1], b"\xff\xff"] {
        let before = fs::read(room.path(LOG)).expect("read");
        fs::write(room.path(LOG), [&before, torn].concat()).expect("written");
        let found = room.audit.verify().expect("read");
        assert!(found.fault.is_none() && found.notes[0].contains("never finished"), "{found:?}");
        room.add("after the crash");
        let lines = room.lines();
        assert!(lines[lines.len() - 2].contains("tail_mended"), "{lines:?}");
        assert!(fs::read(room.path(LOG)).expect("read").starts_with(&before));
        assert_eq!(room.verdict(), "good");
    }
}

#[test]
fn a_crash_between_entry_and_head_breaks_nothing() {
    let room = Room::with(2);
    let head = fs::read(room.path(HEAD)).expect("read");
    room.add("third");
    fs::write(room.path(HEAD), head).expect("put back");
    let found = room.audit.verify().expect("read");
    assert!(found.fault.is_none() && found.notes[0].contains("entries 3 to 3"), "{found:?}");
    assert_eq!((room.add("fourth").sequence, room.verdict()), (4, "good".into()));
    // Without a head, the log says itself where it ends.
    for damage in [None, Some("no head")] {
        match damage {
            None => fs::remove_file(room.path(HEAD)).expect("removed"),
            Some(text) => fs::write(room.path(HEAD), text).expect("written"),
        }
        assert_eq!(room.audit.verify().expect("read").notes.len(), 1);
        room.add("more");
    }
    assert_eq!(room.verdict(), "good");
}

#[test]
fn a_full_log_is_put_aside_and_the_chain_goes_on_also_when_the_oldest_goes() {
    let room = Room::new();
    let rounds = ARCHIVES_MAX as u64 + 3;
    for n in 1..=rounds {
        room.add(&format!("device:d{n}"));
        // As full as thousands of entries would make it; each file begins with an entry that is looked at.
        let file = fs::OpenOptions::new().append(true).open(room.path(LOG)).expect("open");
        if n < rounds {
            fill(&room, file);
        }
    }
    assert_eq!(archives(room.directory.path()).expect("read").len(), ARCHIVES_MAX);
    let found = room.audit.verify().expect("read");
    assert_eq!((found.fault, found.notes), (None, vec![]));
    let (from, _) = found.range.expect("entries");
    assert!(from > 1, "the oldest went");
    let oldest = archives(room.directory.path()).expect("read").remove(0);
    fs::remove_file(oldest).expect("removed");
    assert!(room.verdict().starts_with("1: the log begins with entry"), "{}", room.verdict());
}

/// Adds entries to the log's end until it is full, without a sync for each.
fn fill(room: &Room, mut file: fs::File) {
    use std::io::Write;
    let lines = room.lines();
    let last = lines.last().expect("an entry");
    let sequence = Entry::parse(last.as_bytes()).expect("an entry").sequence;
    let mut link = chain::Link { sequence, sha256: chain::hash_of(last.as_bytes()) };
    let (mut text, long) = (String::new(), "x".repeat(2000));
    while (text.len() as u64) < LOG_BYTES_MAX {
        let line = Entry::new(&link, "reloaded", ["test", "test", &long], UnixSeconds(0)).line();
        link = chain::Link { sequence: link.sequence + 1, sha256: chain::hash_of(line.as_bytes()) };
        text.push_str(&line);
        text.push('\n');
    }
    file.write_all(text.as_bytes()).expect("written");
}

#[test]
fn writers_at_the_same_time_make_one_chain() {
    let room = Room::new();
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let room = &room;
            scope.spawn(move || (0..5).for_each(|n| drop(room.add(&format!("device:{writer}-{n}")))));
        }
    });
    let found = room.audit.verify().expect("read");
    assert_eq!((found.entries, found.fault), (20, None));
}

#[test]
fn a_log_that_cannot_be_written_says_so() {
    let audit = Audit::open(Path::new("/nonexistent/var"));
    let error = audit.record(Action::Reloaded, "x", "x", "", UnixSeconds(0)).expect_err("no such directory");
    assert!(error.to_string().starts_with("cannot lock the audit log /nonexistent/var/audit.jsonl: "), "{error}");
}
