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
