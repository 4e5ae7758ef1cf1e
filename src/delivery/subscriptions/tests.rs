use super::*;

fn wish(qos: QoS, token: u64) -> Wish {
    Wish { qos, retained: Retained::Wanted, as_published: false, token }
}

fn session(slot: u32) -> SessionRef {
    SessionRef { slot, generation: 0 }
}

fn filter(text: &str) -> TopicFilter {
    TopicFilter::try_from(text).expect(text)
}

fn matched(subscriptions: &mut Subscriptions, topic: &str) -> Vec<(u32, u8)> {
    matched_copy(subscriptions, topic, false, &[])
}

fn matched_copy(subscriptions: &mut Subscriptions, topic: &str, retained: bool, of: &[&str]) -> Vec<(u32, u8)> {
    let mut found = vec![];
    let subscription_ids: Vec<_> = of.iter().map(|f| subscription_id(&filter(f))).collect();
    let topic = TopicName::new(topic.as_bytes()).expect(topic);
    let _ =
        subscriptions.matches(&HubCopy { topic, retained, subscription_ids: &subscription_ids }, &mut found, Tick(0));
    found.iter().map(|found| (found.session.slot, found.qos as u8)).collect()
}

/// Asks the hub for all that is wanted and lets it answer with `code`.
fn settle(subscriptions: &mut Subscriptions, code: u8) -> (Vec<Request>, LinkOutput) {
    let (mut requests, mut out) = (vec![], LinkOutput::default());
    while let Some((id, request)) = subscriptions.next_request(Identifiers::None) {
        match &request {
            Request::Subscribe(_, f) => {
                assert!(subscriptions.subscribed(id, &vec![code; f.len()], &mut out, Tick(0)))
            }
            Request::Unsubscribe(_) => subscriptions.unsubscribed(id),
        }
        requests.push(request);
    }
    (requests, out)
}

const Q0: QoS = QoS::AtMostOnce;
const Q1: QoS = QoS::AtLeastOnce;

#[test]
fn a_filter_is_placed_once_for_all_who_hold_it_and_leaves_with_the_last() {
    let mut s = Subscriptions::default();
    assert_eq!(s.subscribe(session(1), &filter("a/#"), wish(Q1, 7), LinkState::Up), Placement::Pending);
    let (requests, out) = settle(&mut s, 1);
    assert_eq!(requests, [Request::Subscribe(None, vec![(filter("a/#"), Q1)])]);
    assert_eq!(out.placed, [Placed { session: session(1), token: 7, granted: Ok(Q1) }]);
    let held = Wish { retained: Retained::Unwanted, ..wish(Q0, 8) };
    assert_eq!(s.subscribe(session(2), &filter("a/#"), held, LinkState::Up), Placement::Granted(Q0));
    assert_eq!(settle(&mut s, 1).0, []);
    assert_eq!(matched(&mut s, "a/x"), [(1, 1), (2, 0)]);
    s.unsubscribe(session(1), &filter("a/#"));
    assert_eq!((settle(&mut s, 1).0, matched(&mut s, "a/x")), (vec![], vec![(2, 0)]));
    s.session_gone(session(2));
    assert_eq!(settle(&mut s, 1).0, [Request::Unsubscribe(vec![filter("a/#")])]);
    assert!(s.entries.is_empty() && s.by_session.is_empty() && matched(&mut s, "a/x").is_empty());
}

#[test]
fn who_asks_twice_before_the_hub_answers_is_answered_twice() {
    let mut s = Subscriptions::default();
    assert_eq!(s.subscribe(session(1), &filter("a"), wish(Q0, 7), LinkState::Up), Placement::Pending);
    assert_eq!(s.subscribe(session(1), &filter("a"), wish(Q1, 8), LinkState::Up), Placement::Pending);
    let placed = |token| Placed { session: session(1), token, granted: Ok(Q1) };
    assert_eq!(settle(&mut s, 1).1.placed, [placed(7), placed(8)]);
    assert_eq!(matched(&mut s, "a"), [(1, 1)]);
}

#[test]
fn a_higher_qos_is_asked_for_again() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("a"), wish(Q0, 0), LinkState::Up);
    settle(&mut s, 0);
    assert_eq!(s.subscribe(session(2), &filter("a"), wish(QoS::ExactlyOnce, 1), LinkState::Up), Placement::Pending);
    let (requests, out) = settle(&mut s, 1);
    assert_eq!(requests, [Request::Subscribe(None, vec![(filter("a"), QoS::ExactlyOnce)])]);
    assert_eq!(out.placed, [Placed { session: session(2), token: 1, granted: Ok(Q1) }], "as the hub has it");
}

#[test]
fn a_session_with_several_filters_gets_one_copy_at_the_highest_qos() {
    let mut s = Subscriptions::default();
    for (f, qos) in [("a/b", Q0), ("a/+", Q1), ("#", Q0)] {
        let _ = s.subscribe(session(1), &filter(f), wish(qos, 0), LinkState::Up);
    }
    assert_eq!(matched(&mut s, "a/b"), [(1, 1)]);
    assert_eq!(matched(&mut s, "c"), [(1, 0)]);
}

#[test]
fn of_the_copies_that_a_hub_sends_for_overlapping_filters_each_session_gets_one() {
    let mut s = Subscriptions::default();
    for (who, f, qos) in [(1, "a/#", Q1), (2, "a/b", Q0), (3, "a/#", Q0), (3, "a/b", Q1)] {
        let _ = s.subscribe(session(who), &filter(f), wish(qos, 0), LinkState::Up);
    }
    let (id, request) = s.next_request(Identifiers::Named).expect("a request");
    let options = SubscriptionOptions { as_published: false, retained: true };
    let named = Named { id: subscription_id(&filter("a/#")), options };
    assert_eq!(request, Request::Subscribe(Some(named), vec![(filter("a/#"), Q1)]));
    assert!(s.subscribed(id, &[1], &mut LinkOutput::default(), Tick(0)));
    assert_eq!(matched_copy(&mut s, "a/b", false, &["a/#"]), [(1, 1)]);
    assert_eq!(matched_copy(&mut s, "a/b", false, &["a/b"]), [(2, 0), (3, 1)]);
    assert_eq!(matched_copy(&mut s, "a/b", false, &["a/b", "a/#"]), [(1, 1), (2, 0), (3, 1)], "one copy for both");
    assert_eq!(matched_copy(&mut s, "a/b", true, &["a/#"]), [(1, 1), (3, 0)], "retained, for who asked for a/#");
    assert_eq!(matched_copy(&mut s, "a/b", false, &["left/long/ago"]), [(1, 1), (2, 0), (3, 1)]);
    assert_ne!(subscription_id(&filter("a/#")), subscription_id(&filter("a/b")));
}

/// Who gets a copy with RETAIN, and with which RETAIN.
fn retained_copy(s: &mut Subscriptions, topic: &str, of: &[&str], now: u64) -> (Vec<(u32, bool)>, Claim) {
    let mut found = vec![];
    let subscription_ids: Vec<_> = of.iter().map(|f| subscription_id(&filter(f))).collect();
    let topic = TopicName::new(topic.as_bytes()).expect("a topic");
    let copy = HubCopy { topic, retained: true, subscription_ids: &subscription_ids };
    let claim = s.matches(&copy, &mut found, Tick(now));
    (found.iter().map(|found| (found.session.slot, found.retain)).collect(), claim)
}

fn retained_for(s: &mut Subscriptions, topic: &str, now: u64) -> Vec<u32> {
    retained_copy(s, topic, &[], now).0.iter().map(|(slot, _)| *slot).collect()
}

#[test]
fn what_the_hub_retains_is_for_those_who_have_just_subscribed() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("a/#"), wish(Q1, 0), LinkState::Up);
    assert_eq!(retained_for(&mut s, "a/b", 0), [1], "before its SUBACK");
    settle(&mut s, 1);
    assert_eq!(retained_for(&mut s, "a/c", 9_999), [1]);
    assert_eq!(retained_for(&mut s, "a/d", 19_998), [1], "where one came, the next may follow");
    assert_eq!(retained_copy(&mut s, "a/e", &[], 29_998), (vec![], Claim::Unasked));
    let _ = s.subscribe(session(2), &filter("a/#"), wish(Q1, 0), LinkState::Up);
    assert_eq!(settle(&mut s, 1).0, [Request::Subscribe(None, vec![(filter("a/#"), Q1)])], "asked again");
    assert_eq!(retained_for(&mut s, "a/b", 1), [2]);
    let without = Wish { retained: Retained::Unwanted, ..wish(Q1, 0) };
    let _ = s.subscribe(session(3), &filter("a/+"), without, LinkState::Up);
    settle(&mut s, 1);
    assert_eq!((retained_for(&mut s, "a/c", 1), matched(&mut s, "a/b").len()), (vec![2], 3));
    s.session_gone(session(2));
    assert_eq!(retained_for(&mut s, "a/b", 30_000), [] as [u32; 0]);
    assert!(s.awaiting.is_empty() && s.awaited.is_empty());
}

#[test]
fn when_another_session_asks_nobody_gets_again_what_it_has() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("a/#"), wish(Q1, 0), LinkState::Up);
    settle(&mut s, 1);
    assert_eq!(retained_for(&mut s, "a/b", 1), [1]);
    // Within the ten seconds, and before all has come.
    let _ = s.subscribe(session(2), &filter("a/#"), wish(Q1, 0), LinkState::Up);
    assert_eq!(retained_for(&mut s, "a/c", 2), [1, 2], "on its way for the first");
    settle(&mut s, 1);
    assert_eq!((retained_for(&mut s, "a/b", 3), retained_for(&mut s, "a/c", 3)), (vec![2], vec![]));
    // Who asks again gets all of it again.
    let _ = s.subscribe(session(1), &filter("a/#"), wish(Q1, 0), LinkState::Up);
    settle(&mut s, 1);
    assert_eq!((retained_for(&mut s, "a/b", 4), retained_for(&mut s, "a/c", 4)), (vec![1], vec![1]));
}

#[test]
fn when_a_hub_begins_anew_only_those_are_sent_what_it_retains_who_want_it_at_any_time() {
    let mut s = Subscriptions::default();
    for (slot, retained) in [(1, Retained::Wanted), (2, Retained::Once), (3, Retained::Missed), (4, Retained::Unwanted)]
    {
        let _ = s.subscribe(session(slot), &filter("a"), Wish { retained, ..wish(Q1, 0) }, LinkState::Up);
    }
    settle(&mut s, 1);
    assert_eq!(retained_for(&mut s, "a", 0), [1, 2]);
    assert_eq!(retained_for(&mut s, "a", 20_000), [] as [u32; 0]);
    s.hub_forgot();
    settle(&mut s, 1);
    // MQTT 5.0 [MQTT-3.3.1-10], [MQTT-3.3.1-11]
    assert_eq!(retained_for(&mut s, "a", 1), [1, 3], "what changed meanwhile was missed");
}

/// Asks a hub that names filters for one, and lets it answer.
fn ask_named(s: &mut Subscriptions, now: u64) -> Option<(bool, bool)> {
    let (id, request) = s.next_request(Identifiers::Named)?;
    let Request::Subscribe(Some(named), filters) = request else { panic!("a named SUBSCRIBE") };
    assert_eq!((named.id, filters.len()), (subscription_id(&filters[0].0), 1));
    assert!(s.subscribed(id, &[1], &mut LinkOutput::default(), Tick(now)));
    Some((named.options.as_published, named.options.retained))
}

#[test]
fn retain_is_left_as_published_for_who_wants_that_and_what_was_kept_is_told_from_it() {
    // MQTT 5.0 [MQTT-3.3.1-12], [MQTT-3.3.1-13]
    let mut s = Subscriptions::default();
    let as_published = Wish { as_published: true, ..wish(Q1, 0) };
    let of = &["a"][..];
    let _ = s.subscribe(session(1), &filter("a"), as_published, LinkState::Up);
    assert_eq!((ask_named(&mut s, 0), ask_named(&mut s, 0)), (Some((true, true)), None));
    assert_eq!(retained_copy(&mut s, "a", of, 0).0, [(1, true)], "kept");
    assert_eq!(retained_copy(&mut s, "a", of, 0).0, [(1, true)], "live");
    assert!(!s.tick(Tick(10_000)));
    assert_eq!(retained_copy(&mut s, "a", of, 10_000).0, [(1, true)], "live");
    // Another one, that wants RETAIN cleared, and what is kept.
    let _ = s.subscribe(session(2), &filter("a"), wish(Q1, 0), LinkState::Up);
    let (id, request) = s.next_request(Identifiers::Named).expect("a request");
    let Request::Subscribe(Some(named), _) = request else { panic!("named") };
    assert_eq!(named.options, SubscriptionOptions { as_published: false, retained: false });
    assert_eq!(retained_copy(&mut s, "a", of, 10_000).0, [(2, true), (1, true)], "live, and on its way before");
    assert!(s.subscribed(id, &[1], &mut LinkOutput::default(), Tick(10_000)));
    let asked = (ask_named(&mut s, 10_000), ask_named(&mut s, 10_000));
    assert_eq!(asked, (Some((false, true)), None), "from here on nothing that is live has it");
    let _ = s.subscribe(session(3), &filter("a"), Wish { retained: Retained::Unwanted, ..as_published }, LinkState::Up);
    ask_named(&mut s, 10_000);
    s.awaiting.get_mut(&(session(2), subscription_id(&filter("a")))).expect("it waits").seen.clear();
    assert_eq!(retained_copy(&mut s, "a", of, 10_001), (vec![(2, true)], Claim::Claimed), "kept");
    assert_eq!(retained_copy(&mut s, "a", of, 10_002), (vec![], Claim::Claimed), "it has it");
    // And when it is there, RETAIN is as published again.
    assert!(s.tick(Tick(40_000)));
    assert_eq!((ask_named(&mut s, 40_000), ask_named(&mut s, 40_000)), (Some((true, false)), None));
    assert_eq!(retained_copy(&mut s, "a", of, 40_000).0, [(1, true), (2, false), (3, true)], "live");
    // A hub of 3.1.1 is not asked, and sends RETAIN with what it kept alone.
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("a"), Wish { retained: Retained::Unwanted, ..as_published }, LinkState::Up);
    settle(&mut s, 1);
    assert_eq!(retained_copy(&mut s, "a", &[], 0), (vec![], Claim::Unasked));
}

#[test]
fn what_a_session_holds_is_handed_over_as_it_is() {
    let mut s = Subscriptions::default();
    for (f, qos) in [("a/#", Q0), ("b", Q1)] {
        let _ = s.subscribe(session(1), &filter(f), wish(qos, 0), LinkState::Up);
    }
    let _ = s.subscribe(session(2), &filter("b"), wish(Q0, 0), LinkState::Up);
    settle(&mut s, 1);
    let _ = s.subscribe(session(1), &filter("c"), wish(Q1, 9), LinkState::Up);
    s.hand_over(session(1), session(3));
    let (requests, out) = settle(&mut s, 1);
    assert_eq!((requests.len(), out.placed), (1, vec![]), "nobody waits for the answer");
    assert_eq!((matched(&mut s, "a/x"), matched(&mut s, "b")), (vec![(3, 0)], vec![(2, 0), (3, 1)]));
    assert_eq!(matched_copy(&mut s, "a/x", true, &[]), [(3, 0)], "retained messages are on their way");
    s.session_gone(session(1));
    assert_eq!((matched(&mut s, "c"), settle(&mut s, 1).0), (vec![(3, 1)], vec![]));
    s.session_gone(session(3));
    s.session_gone(session(2));
    assert!(s.entries.is_empty() && s.by_session.is_empty() && s.awaiting.is_empty());
}

#[test]
fn a_refusal_reaches_who_waits_and_takes_from_who_had() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("a"), wish(Q1, 5), LinkState::Down);
    let _ = s.subscribe(session(2), &filter("a"), wish(Q1, 6), LinkState::Up);
    let (_, out) = settle(&mut s, 0x87);
    assert_eq!(out.placed, [Placed { session: session(2), token: 6, granted: Err(0x87) }]);
    assert_eq!(out.withdrawn, [Withdrawn { session: session(1), filter: filter("a"), reason: 0x87 }]);
    assert!(matched(&mut s, "a").is_empty() && s.by_session.is_empty());
}

#[test]
fn what_changed_while_the_link_was_down_is_asked_when_it_is_up() {
    let mut s = Subscriptions::default();
    for f in ["kept", "left"] {
        let _ = s.subscribe(session(1), &filter(f), wish(Q1, 0), LinkState::Up);
    }
    settle(&mut s, 1);
    let _ = s.subscribe(session(1), &filter("asked"), wish(Q1, 9), LinkState::Up);
    s.next_request(Identifiers::None).expect("a request");
    let mut out = LinkOutput::default();
    s.down(&mut out);
    assert_eq!(out.placed, [Placed { session: session(1), token: 9, granted: Ok(Q1) }]);
    s.unsubscribe(session(1), &filter("left"));
    assert_eq!(s.subscribe(session(1), &filter("new"), wish(Q1, 0), LinkState::Down), Placement::Granted(Q1));
    let (requests, out) = settle(&mut s, 1);
    let asked = vec![(filter("asked"), Q1), (filter("new"), Q1)];
    assert_eq!(requests, [Request::Unsubscribe(vec![filter("left")]), Request::Subscribe(None, asked)]);
    assert_eq!(out.placed, []);
    s.down(&mut LinkOutput::default());
    s.hub_forgot();
    let all = ["asked", "kept", "new"].map(|f| (filter(f), Q1)).to_vec();
    assert_eq!(settle(&mut s, 1).0, [Request::Subscribe(None, all)]);
}

#[test]
fn a_hub_that_answers_no_unsubscribe_holds_nothing_up_and_is_asked_again() {
    let mut s = Subscriptions::default();
    for i in 0..2 * REQUESTS_MAX {
        let f = filter(&format!("f/{i}"));
        let _ = s.subscribe(session(1), &f, wish(Q1, 0), LinkState::Up);
        let (id, _) = s.next_request(Identifiers::None).expect("a SUBSCRIBE");
        assert!(s.subscribed(id, &[1], &mut LinkOutput::default(), Tick(0)));
        s.unsubscribe(session(1), &f);
        assert!(s.next_request(Identifiers::None).is_some(), "an UNSUBSCRIBE");
    }
    assert_eq!((s.unanswered(), s.given_back.len()), (0, REQUESTS_MAX));
    s.down(&mut LinkOutput::default());
    assert_eq!(s.unwanted.len(), REQUESTS_MAX);
}

#[test]
fn many_filters_go_in_few_requests_and_an_answer_to_nothing_is_noticed() {
    let mut s = Subscriptions::default();
    for i in 0..REQUESTS_MAX * FILTERS_PER_REQUEST + 1 {
        let _ = s.subscribe(session(1), &filter(&format!("f/{i}")), wish(Q1, 0), LinkState::Down);
    }
    let requests: Vec<_> = std::iter::from_fn(|| s.next_request(Identifiers::None)).collect();
    assert_eq!((requests.len(), s.unanswered(), s.wanted.len()), (REQUESTS_MAX, REQUESTS_MAX, 1));
    let mut out = LinkOutput::default();
    assert!(!s.subscribed(1, &[0], &mut out, Tick(0)), "never asked");
    assert!(!s.subscribed(requests[0].0, &[0], &mut out, Tick(0)), "one code for 32 filters");
    s.unsubscribed(requests[1].0);
    assert_eq!(s.unanswered(), REQUESTS_MAX - 1, "that was a SUBSCRIBE");
}

#[test]
fn what_a_hub_kept_for_those_who_are_elsewhere_is_theirs_beside_those_who_are_here() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("all/#"), wish(Q1, 0), LinkState::Up);
    for (who, f, qos) in [(8, "all/#", Q1), (8, "all/c", Q0), (9, "nine/#", Q1)] {
        s.moved_away(session(who), &filter(f), qos);
    }
    settle(&mut s, 1);
    assert_eq!(matched(&mut s, "nine/c"), [(9, 1)]);
    assert_eq!(matched(&mut s, "all/c"), [(1, 1), (8, 1)], "each once");
    assert_eq!(matched_copy(&mut s, "all/c", false, &["all/#"]), [(1, 1), (8, 1)], "the copy for this filter");
    assert_eq!(
        matched_copy(&mut s, "all/c", false, &["all/c"]),
        [],
        "the copy for a filter that is not the best of 8's"
    );
    assert_eq!(retained_for(&mut s, "nine/c", 20_000), [9], "nobody here can have asked for it");
    assert_eq!(retained_copy(&mut s, "all/c", &[], 20_000), (vec![], Claim::Unasked));
    s.moved_get_the_rest = true;
    assert_eq!((matched(&mut s, "all/c"), matched(&mut s, "nine/c")), (vec![(1, 1)], vec![(9, 1)]));
}

#[test]
fn filters_of_those_who_are_elsewhere_are_given_back_unless_somebody_here_holds_them() {
    let mut s = Subscriptions::default();
    let _ = s.subscribe(session(1), &filter("all/#"), wish(Q1, 0), LinkState::Up);
    settle(&mut s, 1);
    for f in ["all/#", "nine/#"] {
        s.give_back(&filter(f));
    }
    assert_eq!(settle(&mut s, 1).0, [Request::Unsubscribe(vec![filter("nine/#")])]);
    assert!(s.is_answered());
}
