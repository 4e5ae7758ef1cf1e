//! Names of hosts, as `gateway.toml` holds them.

/// A host alone: no scheme, port or path.
pub(super) fn hostname(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
    let is_name = !text.is_empty() && text.len() <= HOSTNAME_BYTES_MAX && text.chars().all(allowed);
    if is_name || text.parse::<std::net::IpAddr>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no host name: it has no scheme, port or path"))
}

/// MQTT 5.0 §4.11: names with or without a port, set apart by spaces. Not what a URL is.
pub(super) fn server_reference(text: &str) -> Result<String, String> {
    let is_place = |place: &str| {
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => (host, Some(port)),
            _ => (place, None),
        };
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let is_host = address.map_or_else(
            || hostname(host).is_ok() && !host.contains(':'),
            |address| address.parse::<std::net::Ipv6Addr>().is_ok(),
        );
        is_host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
    };
    if text.len() <= SERVER_REFERENCE_BYTES_MAX && !text.is_empty() && text.split(' ').all(is_place) {
        return Ok(text.to_owned());
    }
    Err(format!("{text:?} is no host name or address with or without a port, nor several of them between blanks"))
}

/// RFC 1035 §2.3.4.
const HOSTNAME_BYTES_MAX: usize = 253;
/// It stands in a packet for devices that may take small ones only.
const SERVER_REFERENCE_BYTES_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_reference_names_hosts() {
        for good in ["edge-2.example", "edge-2.example:8883", "10.0.0.2:8883 [fe80::2]:8883", "[::1]"] {
            assert_eq!(server_reference(good).as_deref(), Ok(good));
        }
        for bad in ["", "mqtts://edge-2", "edge-2:", "edge-2:0", "edge-2:99999", "a  b", "::1", "[::1", "a/b"] {
            let error = server_reference(bad).expect_err(bad);
            assert!(error.contains("no host name"), "{error}");
        }
        assert!(server_reference(&"a ".repeat(400)).is_err());
    }
}
