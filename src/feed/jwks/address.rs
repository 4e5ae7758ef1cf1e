//! Which addresses a key set may be fetched from: public ones, and those that the operator lists (threat T4: whoever can
//! name an address must not make the gateway ask its own site for something).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Addresses that begin with the same bits: `10.0.0.0/8`, or a single one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether it holds an address.
    pub fn holds(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                same_head(ours.to_bits().into(), theirs.to_bits().into(), self.bits, 32)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => same_head(ours.to_bits(), theirs.to_bits(), self.bits, 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError)?;
        let all = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|byte| byte.is_ascii_digit()) => bits.parse().map_err(|_| NetworkError)?,
            Some(_) => return Err(NetworkError),
            None => all,
        };
        if bits <= all { Ok(Self { address, bits }) } else { Err(NetworkError) }
    }
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// A text is no [`Network`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkError;

impl fmt::Display for NetworkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an address or a network is written 10.1.2.3 or 10.0.0.0/8")
    }
}

impl std::error::Error for NetworkError {}

/// Whether an address may be asked.
pub(super) fn may_be_asked(address: IpAddr, private: &[Network]) -> bool {
    is_public(address) || private.iter().any(|network| network.holds(address))
}

/// Whether an address leads to the public internet, by the registries of special addresses (RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let bits = address.to_bits();
    !SPECIAL_V4
        .iter()
        .any(|(network, head)| same_head(Ipv4Addr::from(*network).to_bits().into(), bits.into(), *head, 32))
}

/// Only 2000::/3 is given out, and parts of it lead elsewhere.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let bits = address.to_bits();
    let is_in = |network: &str, head| {
        let network: Ipv6Addr = network.parse().expect("invariant: the table holds addresses (tested)");
        same_head(network.to_bits(), bits, head, 128)
    };
    is_in("2000::", 3) && !SPECIAL_V6.iter().any(|(network, head)| is_in(network, *head))
}

fn same_head(ours: u128, theirs: u128, bits: u8, of: u8) -> bool {
    bits == 0 || (ours ^ theirs) >> (of - bits) == 0
}

const SPECIAL_V4: &[([u8; 4], u8)] = &[
    ([0, 0, 0, 0], 8),
    ([10, 0, 0, 0], 8),
    ([100, 64, 0, 0], 10),
    ([127, 0, 0, 0], 8),
    ([169, 254, 0, 0], 16),
    ([172, 16, 0, 0], 12),
    ([192, 0, 0, 0], 24),
    ([192, 0, 2, 0], 24),
    ([192, 88, 99, 0], 24),
    ([192, 168, 0, 0], 16),
    ([198, 18, 0, 0], 15),
    ([198, 51, 100, 0], 24),
    ([203, 0, 113, 0], 24),
    ([224, 0, 0, 0], 3),
];

/// Teredo and other protocol assignments, documentation, 6to4 (an IPv4 address of anybody's choice).
const SPECIAL_V6: &[(&str, u8)] = &[("2001::", 23), ("2001:db8::", 32), ("2002::", 16), ("3fff::", 20)];

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    #[test]
    fn only_public_addresses_are_asked_unless_they_are_listed() {
        for public in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "172.15.255.255",
            "172.32.0.0",
            "100.63.255.255",
            "192.167.1.1",
            "223.255.255.255",
            "2606:4700::1111",
            "2a00::1",
            "::ffff:1.1.1.1",
        ] {
            assert!(may_be_asked(address(public), &[]), "{public}");
        }
        for private in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::127.0.0.1",
            "64:ff9b::7f00:1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
            "2002:7f00:1::",
            "2001:0:1::",
            "2001:db8::1",
        ] {
            assert!(!may_be_asked(address(private), &[]), "{private}");
        }
    }

    #[test]
    fn a_listed_network_holds_its_addresses_and_no_others() {
        let network: Network = "10.1.0.0/16".parse().expect("a network");
        for (text, held) in [
            ("10.1.0.0", true),
            ("10.1.255.255", true),
            ("10.2.0.0", false),
            ("10.0.255.255", false),
            ("::ffff:10.1.2.3", true),
            ("::10.1.2.3", false),
        ] {
            assert_eq!(may_be_asked(address(text), &[network]), held, "{text}");
        }
        let all: Network = "::/0".parse().expect("a network");
        assert!(all.holds(address("::1")) && !all.holds(address("127.0.0.1")));
        let one: Network = "127.0.0.1".parse().expect("an address");
        assert!(one.holds(address("127.0.0.1")) && !one.holds(address("127.0.0.2")));
        for bad in ["", "10.0.0.0/33", "10.0.0.0/", "10.0.0/8", "10.0.0.0/+8", "::1/129", "localhost"] {
            assert_eq!(bad.parse::<Network>(), Err(NetworkError), "{bad}");
        }
    }
}
