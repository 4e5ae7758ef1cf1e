//! What is left of a grant, and what a fresh token gives.

use super::*;

#[test]
fn a_live_session_keeps_what_is_left_of_its_scope() {
    let gate = gate();
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    gate.load_identities(Shape { publish: "devices/{device}/messages/events/x/#", ..Shape::new() }.build());
    let Standing::Narrowed(left) = gate.standing(&grant, NOW) else { panic!("narrowed") };
    let filters: Vec<&str> = left.scope.publish().iter().map(|filter| filter.as_str()).collect();
    assert_eq!(filters, ["devices/pump-17/messages/events/x/#"]);
    assert_eq!(Grant { scope: grant.scope.clone(), ..(*left).clone() }, grant, "all else is as it was");
    assert_eq!(gate.standing(&left, NOW), Standing::Given);
    // What was narrowed stays so until the device connects again.
    gate.load_identities(Shape::new().build());
    assert_eq!(gate.standing(&left, NOW), Standing::Given);
    gate.load_identities(Shape { publish: "elsewhere/#", ..Shape::new() }.build());
    assert!(matches!(gate.standing(&left, NOW), Standing::Narrowed(left) if left.scope.publish().is_empty()));
}

#[test]
fn a_fresh_token_is_of_the_same_device_and_allows_no_more() {
    let gate = gate();
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    let later = UnixSeconds(NOW.0 + 60);
    let fresh = sas("localhost/devices/pump-17", PRIMARY, 7200, None);
    let renewed = gate.renew(&grant, fresh.as_bytes(), later).expect("believed");
    assert_eq!((renewed.expires_at, renewed.scope == grant.scope), (UnixSeconds(NOW.0 + 7200), true));
    assert_ne!(renewed.token_id, grant.token_id);
    let refused = |token: &str| gate.renew(&grant, token.as_bytes(), later).expect_err("refused").denial;
    assert_eq!(
        refused(&sas("localhost/devices/pump-1", b"primary key of the device pump-1", 7200, None)),
        Denial::DeviceMismatch
    );
    assert_eq!(refused(&sas("localhost/devices/pump-17", GROUP, 7200, None)), Denial::SignatureInvalid);
    assert_eq!(refused(&sas("localhost/devices/pump-17", PRIMARY, -3600, None)), Denial::Expired);
    assert_eq!(refused(""), Denial::CredentialMissing);
    // The first token came with a scope of its own; the second does not.
    let narrow = Scope::new(vec![], grant.scope.subscribe().to_vec(), true, 2);
    let narrow = Grant { scope: narrow, ..grant };
    let refused = gate.renew(&narrow, fresh.as_bytes(), later).expect_err("wider");
    assert_eq!((refused.denial, refused.token_id), (Denial::RenewalWidens, Some(renewed.token_id)));
    gate.load_revocations(list(r#"{"device": "pump-17"}"#));
    assert_eq!(gate.renew(&narrow, fresh.as_bytes(), later).expect_err("revoked").denial, Denial::Revoked);
}

/// Each of these refuses the token to whoever comes with it now, and ends the session of whoever came before.
#[test]
fn what_a_policy_or_an_issuer_no_longer_signs_ends_what_it_signed() {
    let policy_token = sas("localhost/devices/pump-17", POLICY, 3600, Some("device"));
    let own = pump_sas();
    let token = jwt(&claims());
    let narrower = |resource: &str| {
        let mut shape = Shape::new();
        shape.policy.resource = Resource::parse(resource).expect("a resource");
        shape
    };
    let issuer = |change: fn(&mut Issuer)| {
        let mut shape = Shape::new();
        change(&mut shape.issuer);
        shape
    };
    let short = Some(Duration::from_secs(1800));
    let policy_life = || {
        let mut shape = Shape::new();
        shape.policy.token_lifetime_max = short;
        shape
    };
    let device_life = || {
        let mut shape = Shape::new();
        shape.pump.as_mut().expect("it is there").token_lifetime_max = short;
        shape
    };
    let cases: [(&str, &str, Shape); 11] = [
        ("resource of another host", &policy_token, narrower("elsewhere")),
        ("resource of another device", &policy_token, narrower("localhost/devices/pump-1")),
        ("life of the policy", &policy_token, policy_life()),
        ("life of the device", &own, device_life()),
        ("iss", &token, issuer(|issuer| issuer.iss = "https://other.example".into())),
        ("audience", &token, issuer(|issuer| issuer.audience = vec!["other".into()])),
        ("device_claim", &token, issuer(|issuer| issuer.device_claim = "device".into())),
        ("require", &token, issuer(|issuer| issuer.require = Some(vec!["tenant".into()]))),
        ("life of the issuer", &token, issuer(|issuer| issuer.token_lifetime_max = Some(Duration::from_secs(60)))),
        (
            "algorithm",
            &token,
            issuer(|issuer| issuer.keys[0].1 = VerifyingKey::from_secret(Algorithm::HS512, ISSUER).expect("a key")),
        ),
        ("scope_claim", &token, issuer(|issuer| issuer.scope_claim = Some("scp".into()))),
    ];
    for (what, token, shape) in cases {
        let gate = gate();
        let grant = gate.admit(&ask("pump-17", token), NOW).expect(what);
        gate.load_identities(Shape::new().build());
        assert_eq!(gate.standing(&grant, NOW), Standing::Given, "{what}: nothing changed");
        gate.load_identities(shape.build());
        let left = gate.standing(&grant, NOW);
        assert_eq!(left, Standing::Ended(CloseReason::GrantWithdrawn), "{what}");
        let why = gate.why_ended(&grant, CloseReason::GrantWithdrawn, NOW);
        assert!(!why.contains("scope"), "{what}: {why}");
    }
}

#[test]
fn what_becomes_wider_ends_nobody() {
    let token = jwt(&claims());
    let policy_token = sas("localhost/devices/pump-17", POLICY, 3600, Some("device"));
    let mut shape = Shape::new();
    shape.policy.resource = Resource::parse("https://localhost").expect("a resource");
    shape.policy.token_lifetime_max = None;
    shape.issuer.audience.push("more".into());
    shape.issuer.require = Some(vec!["exp".into()]);
    shape.issuer.token_lifetime_max = Some(Duration::from_secs(7 * 86400));
    let gate = gate();
    let grants = [&token, &policy_token].map(|token| gate.admit(&ask("pump-17", token), NOW).expect("admitted"));
    gate.load_identities(shape.build());
    for grant in &grants {
        assert_eq!(gate.standing(grant, NOW), Standing::Given);
    }
}

/// Of a life that is counted from now less is left with every second: nobody is ended by time alone.
#[test]
fn the_longest_life_is_counted_for_a_session_as_for_a_newcomer() {
    let gate = gate();
    let grant = gate.admit(&ask("pump-17", &pump_sas()), NOW).expect("admitted");
    for (limit, expected) in [(3599, Standing::Ended(CloseReason::GrantWithdrawn)), (3600, Standing::Given)] {
        let mut shape = Shape::new();
        shape.pump.as_mut().expect("it is there").token_lifetime_max = Some(Duration::from_secs(limit));
        gate.load_identities(shape.build());
        assert_eq!(gate.standing(&grant, NOW), expected, "{limit}");
        assert_eq!(gate.standing(&grant, UnixSeconds(NOW.0 + 1)), Standing::Given, "{limit}, a second later");
    }
}
