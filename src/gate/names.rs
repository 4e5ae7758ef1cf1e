//! Client id and user name, as the profiles read them.

use super::Profile;
use crate::{credential::Refused, denial::Denial, id::DeviceId};

/// The device that a client id names: the id itself; in the Google profile the last part of
/// `projects/{p}/locations/{r}/registries/{g}/devices/{d}`.
pub(super) fn device_of_client_id(client_id: &str, profile: Profile) -> Result<DeviceId, Refused> {
    let refused = |why: String| Refused::new(Denial::ClientIdInvalid, why);
    let id = match (profile, client_id.split_once("/devices/")) {
        (Profile::Google, Some((path, id))) if path.starts_with("projects/") => id,
        _ => client_id,
    };
    DeviceId::try_from(id).map_err(|error| refused(format!("The client id: {error}.")))
}

/// Allowed are the device id; `{host}/{device}`; and Azure's `{host}/{device}/?api-version=…`, also without `?`. Its
/// keys say what software the client is; none of them changes what it may do. The Google profile ignores the user name.
pub(super) fn check_user_name(
    name: &str,
    device: &DeviceId,
    hosts: &[String],
    profile: Profile,
) -> Result<(), Refused> {
    let refused = |why: &str| Err(Refused::new(Denial::UserNameMismatch, why));
    if profile == Profile::Google || name.is_empty() || name == device.as_str() {
        return Ok(());
    }
    let mut parts = name.splitn(3, '/');
    let (Some(host), Some(id), rest) = (parts.next(), parts.next(), parts.next()) else {
        return refused("The user name is neither the client id nor Azure's {host}/{device}/?api-version=….");
    };
    if !hosts.iter().any(|ours| ours.eq_ignore_ascii_case(host)) {
        return refused("The user name names a host that is neither `hostname` nor an alias of this gateway.");
    }
    if id != device.as_str() {
        return refused("The user name names another device than the client id.");
    }
    match rest {
        None | Some("") => Ok(()),
        Some(query) if query.starts_with('?') || query.starts_with("api-version=") => Ok(()),
        Some(_) => refused("The user name names a module, and the client id does not."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_id_names_a_device() {
        let read = |id: &str, profile| device_of_client_id(id, profile).map(|id| id.to_string()).map_err(|r| r.denial);
        let google = "projects/p/locations/europe-west1/registries/r/devices/pump-17";
        assert_eq!(read("pump-17", Profile::Strict).as_deref(), Ok("pump-17"));
        assert_eq!(read("pump-17", Profile::Google).as_deref(), Ok("pump-17"));
        assert_eq!(read(google, Profile::Google).as_deref(), Ok("pump-17"));
        for (bad, profile) in [
            (google, Profile::Strict),
            ("", Profile::Azure),
            ("pump-17/m", Profile::Azure),
            ("a/devices/b", Profile::Google),
            ("a+b", Profile::Strict),
        ] {
            assert_eq!(read(bad, profile), Err(Denial::ClientIdInvalid), "{bad}");
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
