//! The PROXY protocol, version 2: a load balancer in front says who really connects, before the first byte of TLS.
//! Specification: haproxy.org, "The PROXY protocol", §2.2.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
};

use ipnet::IpNet;
use ppp::v2::{Addresses, Command, Header, Protocol};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// The balancers that are believed (`proxy_protocol_from`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<IpNet>);

impl Proxies {
    /// Those of these networks.
    pub fn new(networks: Vec<IpNet>) -> Self {
        Self(networks)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a connection from there has to begin with a header, and is believed. Nobody else's is.
    pub fn cover(&self, address: IpAddr) -> bool {
        self.0.iter().any(|network| network.contains(&address.to_canonical()))
    }
}

/// What came instead of a header.
#[derive(Debug)]
pub enum ProxyError {
    /// Nothing, or an end in the middle.
    Gone,
    /// Something else.
    Malformed(&'static str),
}

impl fmt::Display for ProxyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gone => f.write_str("the connection ended within the PROXY header"),
            Self::Malformed(what) => write!(f, "no PROXY header of version 2: {what}"),
        }
    }
}

/// Reads the header, and no byte behind it; the caller bounds the time. Answers who connects: the address that the
/// header names, or `from` where the balancer speaks for itself (LOCAL: its health checks).
///
/// # Errors
/// [`ProxyError`]: the connection is to be closed.
pub async fn read_proxy_header(socket: &mut TcpStream, from: SocketAddr) -> Result<SocketAddr, ProxyError> {
    let mut header = vec![0; FIXED_BYTES];
    // Told by its first bytes: whoever speaks something else is not waited for.
    socket.read_exact(&mut header[..SIGNATURE.len()]).await.map_err(gone)?;
    if header[..SIGNATURE.len()] != SIGNATURE {
        return Err(ProxyError::Malformed("it does not begin with the signature"));
    }
    socket.read_exact(&mut header[SIGNATURE.len()..]).await.map_err(gone)?;
    let [.., high, low] = header[..] else { return Err(ProxyError::Malformed("it is too short")) };
    let rest = usize::from(u16::from_be_bytes([high, low]));
    if rest > REST_BYTES_MAX {
        return Err(ProxyError::Malformed("it is larger than 4 KiB"));
    }
    header.resize(FIXED_BYTES + rest, 0);
    socket.read_exact(&mut header[FIXED_BYTES..]).await.map_err(gone)?;
    parse_proxy_header(&header, from)
}

/// Who connects, by a whole header.
///
/// # Errors
/// [`ProxyError::Malformed`].
pub fn parse_proxy_header(header: &[u8], from: SocketAddr) -> Result<SocketAddr, ProxyError> {
    let header =
        Header::try_from(header).map_err(|_| ProxyError::Malformed("a field has no value that it may have"))?;
    // What comes with LOCAL is to be ignored (§2.2).
    if header.command == Command::Proxy && header.tlvs().any(|tlv| tlv.is_err()) {
        return Err(ProxyError::Malformed("a field behind the addresses is longer than the header"));
    }
    match (header.command, header.protocol, header.addresses) {
        (Command::Local, _, _) => Ok(from),
        (Command::Proxy, Protocol::Stream, Addresses::IPv4(a)) => Ok((a.source_address, a.source_port).into()),
        (Command::Proxy, Protocol::Stream, Addresses::IPv6(a)) => {
            Ok(SocketAddr::new(IpAddr::V6(a.source_address).to_canonical(), a.source_port))
        }
        _ => Err(ProxyError::Malformed("it names no TCP connection")),
    }
}

fn gone(_: io::Error) -> ProxyError {
    ProxyError::Gone
}

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const FIXED_BYTES: usize = 16;
/// Addresses and what balancers add (TLS facts, identifiers); §2.2 asks for at least 536 bytes.
const REST_BYTES_MAX: usize = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    const FROM: &str = "10.0.0.9:4711";

    fn header(version_command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).expect("small").to_be_bytes();
        [&SIGNATURE[..], &[version_command, family], &length, rest].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 127, 0, 0, 1, 0x12, 0x34, 0x22, 0xB3];

    fn v6() -> Vec<u8> {
        let address: std::net::Ipv6Addr = "2001:db8::7".parse().expect("an address");
        [&address.octets()[..], &[0; 16], &[0x12, 0x34, 0x22, 0xB3]].concat()
    }

    /// What the connection from a listed peer is taken for, and that what follows the header is left alone.
    fn taken_for(header: &[u8]) -> Option<String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let mut client = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
            let (mut socket, _) = listener.accept().await.expect("accepted");
            let bytes = [header, b"MQTT"].concat();
            tokio::io::AsyncWriteExt::write_all(&mut client, &bytes).await.expect("written");
            drop(client);
            let source = read_proxy_header(&mut socket, FROM.parse().expect("an address")).await.ok()?;
            let mut rest = Vec::new();
            socket.read_to_end(&mut rest).await.expect("read");
            assert_eq!(rest, b"MQTT", "what follows is left");
            Some(source.to_string())
        })
    }

    #[test]
    fn the_address_of_the_header_is_taken_and_nothing_behind_it() {
        let with_tlvs = [&V4[..], &[0x04, 0, 1, 42]].concat();
        let mapped: Vec<u8> =
            [&std::net::Ipv4Addr::new(192, 0, 2, 7).to_ipv6_mapped().octets()[..], &[0; 16], &V4[8..]].concat();
        for (header, expected) in [
            (header(0x21, 0x11, &V4), "192.0.2.7:4660"),
            (header(0x21, 0x11, &with_tlvs), "192.0.2.7:4660"),
            (header(0x21, 0x21, &v6()), "[2001:db8::7]:4660"),
            (header(0x21, 0x21, &mapped), "192.0.2.7:4660"),
            (header(0x20, 0x00, &[]), FROM),
            (header(0x20, 0x11, &V4), FROM),
        ] {
            assert_eq!(taken_for(&header).as_deref(), Some(expected), "{header:?}");
        }
    }

    #[test]
    fn whatever_else_comes_is_refused() {
        let too_long = header(0x21, 0x11, &[&V4[..], &[0; REST_BYTES_MAX]].concat());
        for (what, header) in [
            ("no header at all", b"\x10\x20\0\x04MQTT\x05\0\0\0\0\0\0\0".to_vec()),
            ("version 1", b"PROXY TCP4 192.0.2.7 127.0.0.1 4660 8883\r\n".to_vec()),
            ("version 3", header(0x31, 0x11, &V4)),
            ("a command that is none", header(0x22, 0x11, &V4)),
            ("no family", header(0x21, 0x00, &[])),
            ("a datagram", header(0x21, 0x12, &V4)),
            ("a unix socket", header(0x21, 0x31, &[b'/'; 216])),
            ("addresses cut short", header(0x21, 0x11, &V4[..11])),
            ("a field that is longer than the header", header(0x21, 0x11, &[&V4[..], &[0x04, 0, 255, 42]].concat())),
            ("a field that is cut short", header(0x21, 0x11, &[&V4[..], &[0x04, 0]].concat())),
            ("larger than any", too_long),
            ("an end in the middle", header(0x21, 0x11, &V4)[..13].to_vec()),
        ] {
            assert_eq!(taken_for(&header), None, "{what}");
        }
    }

    #[test]
    fn only_listed_networks_are_believed() {
        let nets = ["10.0.0.0/8", "2001:db8::/32"].map(|net| net.parse().expect("a network"));
        let proxies = Proxies::new(nets.into());
        for (address, believed) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("::ffff:10.0.0.1", true),
            ("2001:db8::1", true),
            ("2001:db9::1", false),
        ] {
            assert_eq!(proxies.cover(address.parse().expect("an address")), believed, "{address}");
        }
        assert!(!Proxies::default().cover("127.0.0.1".parse().expect("an address")));
    }
}
