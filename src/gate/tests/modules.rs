//! Modules: who may connect as one, with whose token.

use super::*;

const CAMERA: &[u8; 32] = b"primary key of the module camera";

fn gate_with(pump: Device, camera: Option<Device>) -> Gate {
    let gate = Gate::new(config());
    gate.load_identities(identities(pump, camera));
    gate.load_revocations(Arc::default());
    gate
}

fn identities(pump: Device, camera: Option<Device>) -> Arc<Identities> {
    let mut ring = Keyring::builder();
    ring.add_device(id("pump-17"), pump).expect("new");
    if let Some(camera) = camera {
        ring.add_device(id("pump-17/camera"), camera).expect("new");
    }
    ring.add_device(id("pump-17/bare"), Device { scope: ScopeIndex(1), ..Device::default() }).expect("new");
    ring.add_device(id("orphan/camera"), device(Slots { primary: key(CAMERA), secondary: None })).expect("new");
    let keys = Slots { primary: key(GROUP), secondary: None };
    ring.add_group(Group { prefix: "line7-".into(), keys, token_lifetime_max: None, scope: ScopeIndex(0) })
        .expect("new");
    let keys = Slots { primary: key(CAMERA), secondary: None };
    ring.add_device(id("line7-a/camera"), device(keys)).expect("new");
    for (name, resource) in
        [("device", "localhost"), ("pump", "localhost/devices/pump-17"), ("other", "localhost/devices/pump-1")]
    {
        ring.add_policy(Policy {
            name: name.into(),
            resource: Resource::parse(resource).expect("a resource"),
            keys: Slots { primary: key(POLICY), secondary: None },
            rights: Rights::ALL,
            token_lifetime_max: None,
        })
        .expect("new");
    }
    ring.add_issuer(Issuer {
        name: "factory".into(),
        iss: "https://id.factory.example".into(),
        audience: vec!["localhost".into()],
        published: Published::No,
        keys: vec![(Some("k1".into()), VerifyingKey::from_secret(Algorithm::HS256, ISSUER).expect("a key"))],
        device_claim: "sub".into(),
        scope_claim: None,
        require: None,
        token_lifetime_max: None,
    })
    .expect("new");
    Arc::new(Identities::new(ring.build(), vec![ScopeTemplate::default(); 2]))
}

fn pump() -> Device {
    device(Slots { primary: key(PRIMARY), secondary: None })
}

fn camera() -> Device {
    Device { scope: ScopeIndex(1), ..device(Slots { primary: key(CAMERA), secondary: None }) }
}

fn module_sas(key: &[u8], policy: Option<&str>) -> String {
    sas("localhost/devices/pump-17/modules/camera", key, 3600, policy)
}

#[test]
fn a_module_connects_with_a_token_of_its_own() {
    let gate = gate_with(pump(), Some(camera()));
    let token = module_sas(CAMERA, None);
    let asked = Admission {
        user_name: Some("localhost/pump-17/camera/?api-version=2021-04-12"),
        ..ask("pump-17/camera", &token)
    };
    let grant = gate.admit(&asked, NOW).expect("admitted");
    assert_eq!((grant.device.as_str(), grant.key.as_str()), ("pump-17/camera", "device:pump-17/camera/primary"));
    let publish: Vec<&str> = grant.scope.publish().iter().map(|filter| filter.as_str()).collect();
    assert_eq!(publish, ["devices/pump-17/modules/camera/messages/events/#"]);
    assert_eq!(
        check(&gate, "pump-17/camera", &jwt(&claims().with("sub", "pump-17/camera"))).as_deref(),
        Ok("issuer:factory/k1")
    );
    assert_eq!(gate.recheck(&grant, NOW), None);
}

#[test]
fn the_tokens_of_device_and_module_are_told_apart() {
    let gate = gate_with(pump(), Some(camera()));
    let module = module_sas(CAMERA, None);
    for (client, token, expected) in [
        // The module's token is none of its device, and the device's own key signs for the device alone.
        ("pump-17", module.clone(), Err(Denial::DeviceMismatch)),
        ("pump-17/camera", pump_sas(), Err(Denial::DeviceMismatch)),
        ("pump-17/camera", module_sas(PRIMARY, None), Err(Denial::SignatureInvalid)),
        (
            "pump-17/bare",
            sas("localhost/devices/pump-17/modules/bare", PRIMARY, 3600, None),
            Err(Denial::SignatureInvalid),
        ),
        ("pump-17/bare", module.clone(), Err(Denial::DeviceMismatch)),
        ("pump-17/camera", jwt(&claims()), Err(Denial::DeviceMismatch)),
        ("pump-17", jwt(&claims().with("sub", "pump-17/camera")), Err(Denial::DeviceMismatch)),
        // A policy's token covers by whole segments what its `sr` names.
        ("pump-17/camera", module_sas(POLICY, Some("device")), Ok("policy:device/primary")),
        ("pump-17/camera", sas("localhost/devices/pump-17", POLICY, 3600, Some("device")), Ok("policy:device/primary")),
        ("pump-17/camera", sas("localhost/devices/pump-17", POLICY, 3600, Some("pump")), Ok("policy:pump/primary")),
        ("pump-17", sas("localhost/devices/pump-17", POLICY, 3600, Some("device")), Ok("policy:device/primary")),
        ("pump-17", module_sas(POLICY, Some("device")), Err(Denial::DeviceMismatch)),
        ("pump-17/camera", sas("localhost/devices/pump-1", POLICY, 3600, Some("device")), Err(Denial::DeviceUnknown)),
        ("pump-17/camera", module_sas(POLICY, Some("other")), Err(Denial::ResourceOutOfPolicy)),
        ("pump-17/camera", sas("localhost", POLICY, 3600, Some("device")), Err(Denial::HubWideToken)),
        // A module is one that is listed, of a device that is.
        ("pump-17/ghost", sas("localhost/devices/pump-17", POLICY, 3600, Some("device")), Err(Denial::DeviceUnknown)),
        ("pump-17/ghost", jwt(&claims().with("sub", "pump-17/ghost")), Err(Denial::DeviceUnknown)),
        (
            "orphan/camera",
            sas("localhost/devices/orphan/modules/camera", CAMERA, 3600, None),
            Err(Denial::DeviceUnknown),
        ),
        (
            "line7-a/camera",
            sas("localhost/devices/line7-a/modules/camera", CAMERA, 3600, None),
            Ok("device:line7-a/camera/primary"),
        ),
        (
            "line7-a/other",
            sas("localhost/devices/line7-a/modules/other", CAMERA, 3600, None),
            Err(Denial::DeviceUnknown),
        ),
    ] {
        assert_eq!(check(&gate, client, &token), expected.map(Into::into), "{client} {token}");
    }
}

#[test]
fn what_is_said_of_a_device_is_said_of_its_modules() {
    let gate = gate_with(pump(), Some(camera()));
    let token = module_sas(CAMERA, None);
    let grant = gate.admit(&ask("pump-17/camera", &token), NOW).expect("admitted");
    for (pump, camera, denial) in [
        (Device { enabled: false, ..pump() }, Some(camera()), Denial::DeviceDisabled),
        (pump(), Some(Device { enabled: false, ..camera() }), Denial::DeviceDisabled),
        (Device { accept: Some(vec![TokenKind::Jwt]), ..pump() }, Some(camera()), Denial::CredentialKindNotAccepted),
        (pump(), None, Denial::DeviceUnknown),
    ] {
        gate.load_identities(identities(pump, camera));
        assert_eq!(check(&gate, "pump-17/camera", &token), Err(denial));
        assert_eq!(gate.recheck(&grant, NOW), Some(CloseReason::GrantWithdrawn), "{denial}");
    }
    let own = Device { accept: Some(vec![TokenKind::Sas]), ..camera() };
    gate.load_identities(identities(Device { accept: Some(vec![TokenKind::Jwt]), ..pump() }, Some(own)));
    assert!(check(&gate, "pump-17/camera", &token).is_ok(), "what the module says itself counts for it");
    let short = Device { token_lifetime_max: Some(Duration::from_secs(3599)), ..pump() };
    gate.load_identities(identities(short, Some(camera())));
    assert_eq!(check(&gate, "pump-17/camera", &token), Err(Denial::LifetimeTooLong));
}

#[test]
fn who_revokes_a_device_revokes_its_modules_and_not_the_other_way() {
    let gate = gate_with(pump(), Some(camera()));
    let (module, device) = (module_sas(CAMERA, None), pump_sas());
    let module_grant = gate.admit(&ask("pump-17/camera", &module), NOW).expect("admitted");
    let device_grant = gate.admit(&ask("pump-17", &device), NOW).expect("admitted");
    for (lines, of_device, of_module) in [
        (r#"{"device": "pump-17"}"#, Some(CloseReason::Revoked), Some(CloseReason::Revoked)),
        (r#"{"device": "pump-17/camera"}"#, None, Some(CloseReason::Revoked)),
        (r#"{"device": "pump-17/other"}"#, None, None),
        (r#"{"device": "pump-1"}"#, None, None),
        (
            r#"{"issued_before": "2026-11-21T22:00:00Z", "device": "pump-17"}"#,
            Some(CloseReason::Revoked),
            Some(CloseReason::Revoked),
        ),
        (r#"{"key": "device:pump-17/camera/primary"}"#, None, Some(CloseReason::Revoked)),
    ] {
        gate.load_revocations(list(lines));
        assert_eq!(gate.recheck(&device_grant, NOW), of_device, "{lines}");
        assert_eq!(gate.recheck(&module_grant, NOW), of_module, "{lines}");
        assert_eq!(check(&gate, "pump-17/camera", &module).err(), of_module.map(|_| Denial::Revoked), "{lines}");
    }
}
