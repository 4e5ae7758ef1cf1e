//! Client id and user name, as the profiles read them.

use super::Profile;
use crate::{credential::Refused, denial::Denial, id::DeviceId};

/// Whom a client id names: a device or a module by its id; in the Google profile the device at the end of
/// `projects/{p}/locations/{r}/registries/{g}/devices/{d}`, where `registries` holds what stands before `/devices/` (or is
/// empty: any).
///
/// # Errors
/// [`Denial::ClientIdInvalid`].
pub fn device_of_client_id(client_id: &str, profile: Profile, registries: &[String]) -> Result<DeviceId, Refused> {
    let refused = |why: String| Refused::new(Denial::ClientIdInvalid, why);
    let id = match profile {
        Profile::Google => {
            let (registry, id) = split_google(client_id).ok_or_else(|| {
                refused("The client id is not projects/{p}/locations/{r}/registries/{g}/devices/{d}.".into())
            })?;
            if !registries.is_empty() && !registries.iter().any(|known| known == registry) {
                return Err(refused("The client id names a registry that `google_registries` does not hold.".into()));
            }
            id
        }
        Profile::Strict | Profile::Azure => client_id,
    };
    DeviceId::try_from(id).map_err(|error| refused(format!("The client id: {error}.")))
}

/// The registry and the device of a client id as Google writes it.
fn split_google(client_id: &str) -> Option<(&str, &str)> {
    let (registry, id) = client_id.rsplit_once("/devices/")?;
    is_google_registry(registry).then_some((registry, id)).filter(|(_, id)| !id.contains('/'))
}

/// Whether a text is `projects/{p}/locations/{r}/registries/{g}`.
pub fn is_google_registry(text: &str) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let ["projects", project, "locations", region, "registries", registry] = parts.as_slice() else { return false };
    [project, region, registry].iter().all(|part| !part.is_empty() && part.bytes().all(is_google_name_byte))
}

fn is_google_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~+%:".contains(&byte)
}

/// Allowed are the id itself; `{host}/{device}[/{module}]`; and Azure's
/// `{host}/{device}[/{module}]/?api-version=…`, also without `?`. Its keys say what software the client is; none of them
/// changes what it may do. The Google profile ignores the user name.
///
/// # Errors
/// [`Denial::UserNameMismatch`].
pub fn check_user_name(name: &str, device: &DeviceId, hosts: &[String], profile: Profile) -> Result<(), Refused> {
    let refused = |why: &str| Err(Refused::new(Denial::UserNameMismatch, why));
    if profile == Profile::Google || name.is_empty() || name == device.as_str() {
        return Ok(());
    }
    let Some((host, rest)) = name.split_once('/') else {
        return refused("The user name is neither the client id nor Azure's {host}/{device}/?api-version=….");
    };
    if !hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) {
        return refused("The user name names a host that is neither `hostname` nor an alias of this gateway.");
    }
    let (id, rest) = next_part(rest);
    if id != device.device() {
        return refused("The user name names another device than the client id.");
    }
    let (module, rest) = match next_part(rest) {
        (module, rest) if !module.is_empty() && !is_query(module) => (Some(module), rest),
        _ => (None, rest),
    };
    match (module, device.module()) {
        (Some(_), None) => return refused("The user name names a module, and the client id does not."),
        (None, Some(_)) => return refused("The client id names a module, and the user name does not."),
        (Some(named), Some(module)) if named != module => {
            return refused("The user name names another module than the client id.");
        }
        _ => {}
    }
    if rest.is_empty() || is_query(rest) { Ok(()) } else { refused("The user name goes on behind its last part.") }
}

/// The client id of whom a user name says that it is: the whole of it, or `{device}[/{module}]` of Azure's. It proves
/// nothing.
pub fn client_id_of_user_name(name: &str) -> Option<&str> {
    let id = match name.split_once('/') {
        None => name,
        Some((_, named)) => {
            let (device, rest) = next_part(named);
            let (module, _) = next_part(rest);
            let has_module = !module.is_empty() && !is_query(module);
            if has_module { named.get(..device.len() + 1 + module.len())? } else { device }
        }
    };
    (!id.is_empty() && !is_query(id)).then_some(id)
}

fn next_part(text: &str) -> (&str, &str) {
    text.split_once('/').unwrap_or((text, ""))
}

fn is_query(text: &str) -> bool {
    text.starts_with('?') || text.starts_with("api-version=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_says_which_client_id_is_meant() {
        for (name, id) in [
            ("pump-17", Some("pump-17")),
            ("localhost/pump-17", Some("pump-17")),
            ("localhost/pump-17/?api-version=2021-04-12", Some("pump-17")),
            ("localhost/pump-17/api-version=2021-04-12", Some("pump-17")),
            ("localhost/pump-17/camera/?api-version=2021-04-12", Some("pump-17/camera")),
            ("localhost/pump-17/camera", Some("pump-17/camera")),
            ("localhost/?api-version=2021-04-12", None),
            ("localhost/", None),
            ("", None),
        ] {
            assert_eq!(client_id_of_user_name(name), id, "{name:?}");
        }
    }

    #[test]
    fn a_client_id_names_a_device_or_a_module() {
        let read = |id: &str, profile| {
            device_of_client_id(id, profile, &[]).map(|id| id.to_string()).map_err(|refused| refused.denial)
        };
        let google = "projects/p/locations/europe-west1/registries/r/devices/pump-17";
        for good in ["pump-17", "pump-17/camera"] {
            assert_eq!(read(good, Profile::Strict).as_deref(), Ok(good));
            assert_eq!(read(good, Profile::Azure).as_deref(), Ok(good));
        }
        assert_eq!(read(google, Profile::Google).as_deref(), Ok("pump-17"));
        for (bad, profile) in [
            (google, Profile::Strict),
            ("", Profile::Azure),
            ("pump-17/", Profile::Azure),
            ("pump-17/a/b", Profile::Azure),
            ("a+b", Profile::Strict),
            ("pump-17", Profile::Google),
            ("a/devices/b", Profile::Google),
            ("projects/p/locations/l/registries/r/devices/", Profile::Google),
            ("projects/p/locations/l/registries/r/devices/d/m", Profile::Google),
            ("projects//locations/l/registries/r/devices/d", Profile::Google),
            ("projects/p/locations/l/registries/r/devices/a/devices/d", Profile::Google),
            ("/projects/p/locations/l/registries/r/devices/d", Profile::Google),
            ("Projects/p/locations/l/registries/r/devices/d", Profile::Google),
        ] {
            assert_eq!(read(bad, profile), Err(Denial::ClientIdInvalid), "{bad}");
        }
    }

    #[test]
    fn a_client_id_of_google_lies_in_a_registry_that_is_named() {
        let registries = ["projects/p/locations/l/registries/r".to_owned()];
        let read =
            |id| device_of_client_id(id, Profile::Google, &registries).map(|id| id.to_string()).map_err(|r| r.denial);
        assert_eq!(read("projects/p/locations/l/registries/r/devices/d").as_deref(), Ok("d"));
        for other in ["projects/q/locations/l/registries/r/devices/d", "projects/p/locations/l/registries/rr/devices/d"]
        {
            assert_eq!(read(other), Err(Denial::ClientIdInvalid), "{other}");
        }
    }

    #[test]
    fn a_modules_user_name_names_the_module() {
        let module = DeviceId::try_from("pump-17/camera").expect("an id");
        let hosts = ["localhost".to_owned()];
        let check = |name: &str| check_user_name(name, &module, &hosts, Profile::Azure).map_err(|r| r.denial);
        for good in [
            "",
            "pump-17/camera",
            "localhost/pump-17/camera",
            "localhost/pump-17/camera/?api-version=2021-04-12&DeviceClientType=a/b",
            "localhost/pump-17/camera/api-version=2016-11-14",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for bad in [
            "pump-17",
            "localhost/pump-17",
            "localhost/pump-17/?api-version=2021-04-12",
            "localhost/pump-17/other/?api-version=2021-04-12",
            "localhost/pump-18/camera/?api-version=2021-04-12",
            "localhost/pump-17/camera/more/?api-version=2021-04-12",
        ] {
            assert_eq!(check(bad), Err(Denial::UserNameMismatch), "{bad}");
        }
    }

    #[test]
    fn a_user_name_agrees_with_the_client_id_or_is_refused() {
        let device = DeviceId::try_from("pump-17").expect("an id");
        let hosts = ["localhost".to_owned(), "hub.example.net".to_owned()];
        let check = |name: &str, profile| check_user_name(name, &device, &hosts, profile).map_err(|r| r.denial);
        for good in [
            "",
            "pump-17",
            "localhost/pump-17",
            "LocalHost/pump-17/",
            "hub.example.net/pump-17/?api-version=2021-04-12&DeviceClientType=py-azure-iot-device%2F2.14",
            "hub.example.net/pump-17/api-version=2016-11-14",
            "localhost/pump-17/?api-version=2019-10-01&api-version=2020&model-id=dtmi:x;1&unknown=a/b",
        ] {
            assert_eq!(check(good, Profile::Azure), Ok(()), "{good}");
            assert_eq!(check(good, Profile::Strict), Ok(()), "{good}");
        }
        for bad in [
            "pump-18",
            "PUMP-17",
            "anything",
            "localhost",
            "other.example.net/pump-17/?api-version=2021-04-12",
            "localhost/pump-18/?api-version=2021-04-12",
            "localhost/pump-17/module/?api-version=2021-04-12",
            "/pump-17",
        ] {
            assert_eq!(check(bad, Profile::Azure), Err(Denial::UserNameMismatch), "{bad}");
            assert_eq!(check(bad, Profile::Google), Ok(()), "{bad}");
        }
    }
}
