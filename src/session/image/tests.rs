use proptest::prelude::*;

use super::*;

const NOW: Now = Now { tick: Tick(5_000), wall_ms: 1_800_000_000_000 };

fn device() -> DeviceId {
    DeviceId::try_from("pump-17").expect("an id")
}

fn number(n: u64) -> Receipt {
    Receipt::new(n).expect("not 0")
}

fn subscription(filter: &str) -> Subscription {
    Subscription {
        filter: TopicFilter::try_from(filter).expect(filter),
        qos: QoS::AtLeastOnce,
        no_local: true,
        retain_as_published: false,
        retain_handling: 2,
        id: NonZeroU32::new(268_435_455),
    }
}

fn message(n: u64, qos: QoS) -> Message {
    let topic = TopicName::new("c/é".as_bytes()).expect("a topic");
    let payload = n.to_le_bytes();
    let mut message = Message::new(topic, &[b"\x01\x01"], &payload, qos);
    message.receipt = Some(number(n));
    message.retain = n.is_multiple_of(2);
    message.expires_at = n.is_multiple_of(3).then_some(Tick(9_000 + n));
    message
}

fn read(entries: &[Vec<u8>]) -> Image {
    let mut image = Image::default();
    entries.iter().for_each(|entry| image.apply(&device(), entry, NOW).expect("an entry"));
    image
}

fn written(standing: Standing, state: &SessionState) -> Vec<Vec<u8>> {
    let mut entries = vec![];
    Kept::write(standing, state, NOW, &mut |entry| {
        let mut bytes = vec![];
        entry.write(&mut bytes);
        entries.push(bytes);
    });
    entries
}

fn state() -> SessionState {
    let published = |n, qos| InFlight { packet_id: n as u16, stage: Stage::Published(message(n, qos)) };
    SessionState {
        awaited: vec![],
        subscriptions: vec![subscription("c/#"), subscription("$tollgate/auth/result")],
        received: vec![7, 65_535],
        in_flight: vec![
            published(3, QoS::AtLeastOnce),
            InFlight { packet_id: 4, stage: Stage::Released },
            published(2, QoS::ExactlyOnce),
        ],
        queued: vec![message(9, QoS::AtLeastOnce), message(10, QoS::ExactlyOnce)],
    }
}

#[test]
fn a_session_is_read_as_it_was_written_also_twice() {
    let standing = Standing { expires_after: 60, away_since: Some(UnixSeconds(1_800_000_000)), reads_bags: true };
    let once = written(standing, &state());
    let twice: Vec<_> = once.iter().chain(&once).cloned().collect();
    for entries in [once, twice] {
        let image = read(&entries);
        assert_eq!(image.sessions.get(&device()), Some(&Kept { standing, state: state() }));
    }
}

#[test]
fn times_are_kept_by_the_wall_clock() {
    let mut message = message(1, QoS::AtLeastOnce);
    message.expires_at = Some(Tick(6_000));
    let mut bytes = vec![];
    Entry::queued(number(1), &message, NOW).write(&mut bytes);
    let later = |passed: u64| {
        let mut image = Image::default();
        image.sessions.insert(device(), Kept::default());
        let now = Now { tick: Tick(10), wall_ms: NOW.wall_ms + passed };
        image.apply(&device(), &bytes, now).expect("an entry");
        image.sessions[&device()].state.queued[0].expires_at
    };
    assert_eq!((later(0), later(400), later(5_000)), (Some(Tick(1_010)), Some(Tick(610)), Some(Tick(10))));
}

#[test]
fn of_a_session_that_ended_nothing_is_left_and_another_begins_empty() {
    let mut entries = written(Standing::default(), &state());
    let mut entry = |entry: Entry<'_>| {
        let mut bytes = vec![];
        entry.write(&mut bytes);
        entries.push(bytes);
        read(&entries).sessions.get(&device()).cloned()
    };
    assert_eq!(entry(Entry::Ended), None);
    assert_eq!(entry(Entry::Received(1)), None, "it came too late");
    assert_eq!(entry(Entry::Begun), Some(Kept::default()));
}

#[test]
fn what_is_no_entry_is_refused() {
    for bytes in [
        &b""[..],
        &[1],
        &[2, BEGUN],
        &[1, 14],
        &[1, WILL_GONE, 0, 0, 0, 0, 0, 0, 0, 0],
        &[1, BEGUN, 0],
        &[1, SENT, 1, 0, 0],
        &[1, RECEIVED, 0, 0],
    ] {
        assert_eq!(Entry::parse(bytes), Err(NoEntry), "{bytes:?}");
    }
    // A length that runs past the end; a QoS that does not wait.
    let mut bytes = vec![];
    Entry::queued(number(1), &message(1, QoS::AtLeastOnce), NOW).write(&mut bytes);
    let topic_length = 2 + 8 + 8 + 1;
    for (at, to) in [(topic_length, 200), (topic_length - 1, 0), (topic_length - 1, 3)] {
        let mut damaged = bytes.clone();
        damaged[at] = to;
        assert_eq!(Entry::parse(&damaged), Err(NoEntry), "{at}");
    }
}

#[test]
fn a_will_stands_beside_the_session_until_it_is_gone() {
    let (will, other) = (number(3), number(4));
    let topic = TopicName::new(b"w").expect("a topic");
    let message = MessageRef { topic, properties: b"\x01\x01", payload: b"gone", qos: QoS::AtMostOnce, retain: true };
    let entry = |number, due_at_ms| Entry::Will { number, due_at_ms, waits: 5, message, proof: b"proof" };
    let after = |entries: &[Entry<'_>]| {
        let bytes = |entry: &Entry<'_>| {
            let mut bytes = vec![];
            entry.write(&mut bytes);
            bytes
        };
        let image = read(&entries.iter().map(bytes).collect::<Vec<_>>());
        image.wills.get(&device()).cloned().unwrap_or_default()
    };
    let begun = [entry(will, None), Entry::Begun, entry(other, None), Entry::Ended, Entry::WillDue(other, 9)];
    let wills = after(&begun);
    let numbers: Vec<_> = wills.iter().map(|held| (held.number, held.due_at_ms)).collect();
    assert_eq!(numbers, [(will, None), (other, Some(9))]);
    assert_eq!(wills[1].entry(), Some(entry(other, Some(9))));
    assert_eq!((wills[0].will.topic.as_str(), wills[0].will.payload.as_slice()), ("w", message.payload));
    let mut all = begun.to_vec();
    all.extend([entry(will, Some(7)), Entry::WillGone(other)]);
    assert_eq!(after(&all).iter().map(|held| held.due_at_ms).collect::<Vec<_>>(), [Some(7)]);
    all.push(Entry::WillGone(will));
    assert_eq!(after(&all), []);
}

/// What a session does, as its machine says it.
#[derive(Clone, Copy, Debug)]
enum Does {
    Queue(QoS),
    Send,
    Release(usize),
    Done(usize),
    Drop(usize),
    Receive(u16),
    Finish(u16),
    /// It is written anew, as a compaction does.
    Rewrite,
}

fn does() -> impl Strategy<Value = Does> {
    prop_oneof![
        prop_oneof![Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)].prop_map(Does::Queue),
        Just(Does::Send),
        (0usize..4).prop_map(Does::Release),
        (0usize..4).prop_map(Does::Done),
        (0usize..4).prop_map(Does::Drop),
        (1u16..4).prop_map(Does::Receive),
        (1u16..4).prop_map(Does::Finish),
        Just(Does::Rewrite),
    ]
}

proptest! {
    /// Whatever a session does, and wherever reading stops, the entries amount to what it was at that moment; also when
    /// they are read from the last time on that it was written anew.
    #[test]
    fn entries_amount_to_the_state_at_every_moment(steps in prop::collection::vec(does(), 0..60)) {
        let mut model = SessionState::default();
        let mut entries = written(Standing::default(), &model);
        let (mut n, mut packet_id, mut anew) = (0, 0, 0);
        for step in steps {
            let mut write = |entry: Entry<'_>| {
                let mut bytes = vec![];
                entry.write(&mut bytes);
                entries.push(bytes);
            };
            match step {
                Does::Queue(qos) => {
                    n += 1;
                    let message = message(n, qos);
                    write(Entry::queued(number(n), &message, NOW));
                    model.queued.push(message);
                }
                Does::Send if !model.queued.is_empty() => {
                    packet_id += 1;
                    let message = model.queued.remove(0);
                    write(Entry::Sent { number: message.receipt.expect("numbered"), packet_id });
                    model.in_flight.push(InFlight { packet_id, stage: Stage::Published(message) });
                }
                Does::Release(at) if at < model.in_flight.len() => {
                    model.in_flight[at].stage = Stage::Released;
                    write(Entry::Released(model.in_flight[at].packet_id));
                }
                Does::Done(at) if at < model.in_flight.len() => write(Entry::Done(model.in_flight.remove(at).packet_id)),
                Does::Drop(at) if at < model.queued.len() => {
                    write(Entry::Dropped(model.queued.remove(at).receipt.expect("numbered")));
                }
                Does::Receive(id) if !model.received.contains(&id) => {
                    model.received.push(id);
                    write(Entry::Received(id));
                }
                Does::Finish(id) => {
                    model.received.retain(|held| *held != id);
                    write(Entry::Finished(id));
                }
                Does::Rewrite => {
                    anew = entries.len();
                    entries.extend(written(Standing::default(), &model));
                }
                _ => {}
            }
            prop_assert_eq!(&read(&entries).sessions[&device()].state, &model);
        }
        prop_assert_eq!(&read(&entries[anew..]).sessions[&device()].state, &model);
    }

    #[test]
    fn no_bytes_make_it_stumble(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
        if let Ok(entry) = Entry::parse(&bytes) {
            let mut again = vec![];
            entry.write(&mut again);
            prop_assert_eq!(Entry::parse(&again), Ok(entry));
        }
    }
}
