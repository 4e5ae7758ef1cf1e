use std::os::unix::fs::PermissionsExt;

use super::{
    super::refresh::{Kind, TokenName, attempt_hash},
    *,
};

const NOW: UnixSeconds = UnixSeconds(1_000_000);
const END: UnixSeconds = UnixSeconds(2_000_000);

struct Room {
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().expect("a directory") }
    }

    fn open(&self) -> Store {
        Store::open(self.directory.path(), NOW).expect("opened")
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join(FILE)
    }
}

fn device(id: &str) -> DeviceId {
    DeviceId::try_from(id).expect("an id")
}

fn made(name: &str) -> Outstanding {
    Outstanding { name: TokenName::Jti(name.into()), expires_at: NOW.0 + 3600 }
}

fn begin(store: &Store, id: &str) -> Zeroizing<String> {
    let terms = LineTerms { kind: Kind::Jwt, publish: true, subscribe: true, policy: None, audience: None };
    let origin = Origin::Caller("line7".into());
    store.begin(&device(id), (origin, terms), made("first"), END, NOW).expect("begun").text()
}

fn exchange(store: &Store, token: &str) -> Result<RefreshToken, Refusal<()>> {
    store.exchange(token, None, |_| Ok(((), made("next"))), NOW).map(|((), token)| token)
}

/// As [`exchange`], and the device has the answer.
fn answered(store: &Store, token: &str) -> Zeroizing<String> {
    let next = exchange(store, token).expect("exchanged");
    store.answered(&next.line(), next.sequence(), Answer::Written);
    next.text()
}

fn is_reused(result: Result<RefreshToken, Refusal<()>>) -> bool {
    matches!(result, Err(Refusal::Reused(_)))
}

fn is_unknown(result: Result<RefreshToken, Refusal<()>>) -> bool {
    matches!(result, Err(Refusal::Unknown(_)))
}

#[test]
fn what_was_used_stays_used_after_the_process_was_killed_at_any_moment() {
    let room = Room::new();
    let (first, second) = {
        let store = room.open();
        let first = begin(&store, "d");
        let second = answered(&store, &first);
        (first, second)
    };
    let store = room.open();
    let third = answered(&store, &second);
    drop(store);
    let store = room.open();
    assert!(is_reused(exchange(&store, &first)), "long ago");
    drop(store);
    let store = room.open();
    assert!(is_reused(exchange(&store, &third)), "the line is dead, its newest token too, across a restart");
    assert_eq!(store.reused().len(), 1);
    store.end(&store.reused()[0].line.clone()).expect("ended");
    assert!(is_unknown(exchange(&store, &third)) && is_unknown(exchange(&store, &second)));
    drop(store);
    assert!(is_unknown(exchange(&room.open(), &third)));
}

#[test]
fn who_was_not_answered_because_the_gateway_ended_is_answered_after_it() {
    let room = Room::new();
    let (first, never_arrived) = {
        let store = room.open();
        let first = begin(&store, "d");
        let never_arrived = exchange(&store, &first).expect("exchanged").text();
        assert!(is_reused_probe(&store, &first), "in this process the answer is still on its way");
        (first, never_arrived)
    };
    let store = room.open();
    let second = answered(&store, &first);
    assert!(is_reused(exchange(&store, &never_arrived)), "it is void: whoever had it is not the device");
    assert!(is_reused(exchange(&store, &second)));
}

/// Whether it would be taken for reused, on a copy of the line.
fn is_reused_probe(store: &Store, text: &str) -> bool {
    let held = store.held().expect("good");
    let token = RefreshToken::read(text, &held.tag_key).expect("ours");
    held.lines[&token.line()].judge(&token, None, NOW) == Verdict::Reused
}

#[test]
fn a_connection_that_broke_before_the_answer_leaves_the_token_once_more() {
    let room = Room::new();
    let store = room.open();
    let first = begin(&store, "d");
    let lost = exchange(&store, &first).expect("exchanged");
    store.answered(&lost.line(), lost.sequence(), Answer::Lost);
    let second = answered(&store, &first);
    answered(&store, &second);
    assert!(is_reused(exchange(&store, &first)), "its successor was used");
}

#[test]
fn of_many_at_the_same_time_one_is_answered() {
    let room = Room::new();
    let store = room.open();
    let first = begin(&store, "d");
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| exchange(&store, &first).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(results.iter().filter(|ok| **ok).count(), 1);
    assert_eq!(store.reused().len(), 1, "and the others have shown that it leaked");
}

#[test]
fn a_token_that_is_refused_is_not_used_up() {
    let room = Room::new();
    let store = room.open();
    let first = begin(&store, "d");
    let refused = store.exchange(&first, None, |_| Err::<((), Outstanding), _>("switched off"), NOW);
    assert!(matches!(refused, Err(Refusal::Refused("switched off"))));
    answered(&store, &first);
}

#[test]
fn the_same_attempt_is_answered_again_after_a_restart() {
    let room = Room::new();
    let attempt = || Some(attempt_hash("a-random-text-of-mine"));
    let ask = |store: &Store, token: &str| {
        let ((), next) = store.exchange(token, attempt(), |_| Ok::<_, ()>(((), made("next"))), NOW).expect("exchanged");
        store.answered(&next.line(), next.sequence(), Answer::Written);
        next.text()
    };
    let store = room.open();
    let first = begin(&store, "d");
    let _never_read = ask(&store, &first);
    drop(store);
    let store = room.open();
    let second = ask(&store, &first);
    answered(&store, &second);
}

#[test]
fn a_record_that_was_cut_off_is_dropped_and_one_damaged_in_the_middle_stops_all() {
    let room = Room::new();
    let first = begin(&room.open(), "d");
    let whole = fs::read_to_string(room.file()).expect("read");
    let torn = format!("{whole}{{\"line\":{{\"line\":\"ab");
    fs::write(room.file(), torn).expect("written");
    answered(&room.open(), &first);
    let whole = fs::read_to_string(room.file()).expect("read");
    fs::write(room.file(), whole.replacen("\"sequence\":", "\"sequenxe\":", 1)).expect("written");
    let error = Store::open(room.directory.path(), NOW).err().expect("damaged").to_string();
    assert!(error.contains("line 2 is damaged"), "{error}");
}

#[test]
fn the_file_is_its_owners_alone_and_holds_no_token() {
    let room = Room::new();
    let store = room.open();
    let first = begin(&store, "d");
    let second = answered(&store, &first);
    assert_eq!(fs::metadata(room.file()).expect("there").permissions().mode() & 0o777, 0o600);
    let text = fs::read_to_string(room.file()).expect("read");
    for token in [first, second] {
        let secret = token.get(30..60).expect("long");
        assert!(!text.contains(secret) && !text.contains(&*token));
    }
}

#[test]
fn one_process_has_it() {
    let room = Room::new();
    let _store = room.open();
    let error = Store::open(room.directory.path(), NOW).err().expect("taken").to_string();
    assert!(error.contains("another process"), "{error}");
}

#[test]
fn the_file_is_written_anew_when_it_is_mostly_of_the_past() {
    let room = Room::new();
    let store = room.open();
    let mut token = begin(&store, "d");
    store.held.lock().expect("not poisoned").bytes = BYTES_CALM + 1;
    token = answered(&store, &token);
    assert!(fs::metadata(room.file()).expect("there").len() < 4096, "its past is gone");
    drop(store);
    answered(&room.open(), &token);
}

#[test]
fn a_device_has_a_few_lines_and_the_longest_unused_makes_place() {
    let room = Room::new();
    let store = room.open();
    let tokens: Vec<_> = (0..=LINES_PER_DEVICE_MAX).map(|_| begin(&store, "d")).collect();
    let other = begin(&store, "e");
    assert!(is_unknown(exchange(&store, &tokens[0])));
    answered(&store, &tokens[1]);
    answered(&store, &other);
    assert_eq!(store.held().expect("good").lines.len(), LINES_PER_DEVICE_MAX + 1);
}

#[test]
fn there_are_so_many_lines_in_all() {
    let room = Room::new();
    let store = Store { lines_max: 2, ..room.open() };
    begin(&store, "a");
    begin(&store, "b");
    let terms = LineTerms { kind: Kind::Sas, publish: true, subscribe: true, policy: None, audience: None };
    let full = store.begin(&device("c"), (Origin::Caller("x".into()), terms), made("x"), END, NOW);
    assert!(full.expect_err("full").to_string().contains("2 lines"));
}
