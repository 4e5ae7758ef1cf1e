//! What stands before MQTT: the header of a balancer, and WebSocket frames.

use std::net::{Ipv4Addr, SocketAddr};

use tollgate::listener::{
    FrameControl, FrameDecoder, FrameViolation, WebSocketRules, parse_proxy_header, read_upgrade,
};

/// A whole header: it names an address, or is refused.
pub fn proxy_header(data: &[u8]) {
    let from = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    if let Ok(named) = parse_proxy_header(data, from) {
        assert!(named.ip().to_canonical() == named.ip(), "one way to write an address");
        assert!(data.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
    }
}

/// Frames of a client. In whatever pieces they arrive, the same bytes come out, and the same is said.
pub fn websocket_frames(data: &[u8]) {
    let whole = read([data]);
    let (head, tail) = data.split_at(data.len() / 2);
    assert_eq!(read([head, tail]), whole);
    assert_eq!(read(data.chunks(1)), whole);
    assert!(whole.0.len() <= data.len());
}

/// The request of a client. What agrees and what declines is one whole answer that nothing of the request can bend; a request
/// that is agreed to is the same whatever follows it, and none while its last byte has not come.
pub fn websocket_upgrade(data: &[u8]) {
    let rules = WebSocketRules {
        paths: ["/mqtt", "/$iothub/websocket"].map(str::to_owned).into(),
        origins: vec!["https://panel.example".to_owned()],
        hosts: vec!["edge.example".to_owned()],
    };
    match read_upgrade(data, &rules) {
        Ok(None) => {}
        Ok(Some(upgrade)) => {
            let head = String::from_utf8(upgrade.answer).expect("text");
            let lines: Vec<&str> = head.split("\r\n").collect();
            assert!(matches!(lines[..], ["HTTP/1.1 101 Switching Protocols", _, _, _, _, "", ""]), "{head:?}");
            assert!(
                lines[3].strip_prefix("Sec-WebSocket-Accept: ").is_some_and(|accept| accept.len() == 28),
                "{head:?}"
            );
            let whole = data.get(..upgrade.used).expect("no more than there is");
            assert!(whole.ends_with(b"\n"), "a head ends with a line");
            if let Some(bearer) = &upgrade.bearer {
                assert!(!bearer.is_empty() && whole.windows(bearer.len()).any(|window| window == &bearer[..]));
            }
            let again =
                |bytes: &[u8]| read_upgrade(bytes, &rules).map(|read| read.map(|read| (read.used, read.bearer)));
            assert_eq!(again(whole), Ok(Some((upgrade.used, upgrade.bearer.clone()))));
            assert_eq!(again(&[whole, b"more"].concat()), Ok(Some((upgrade.used, upgrade.bearer))));
            assert_eq!(again(&whole[..whole.len() - 1]), Ok(None));
        }
        Err(declined) => {
            let answer = String::from_utf8(declined.answer()).expect("text");
            let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
            assert!(head.starts_with("HTTP/1.1 4"), "{head:?}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{answer:?}");
            assert!(body.ends_with('\n') && body.len() < 200, "{body:?}");
        }
    }
}

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<u8>, Vec<FrameControl>, Option<FrameViolation>) {
    let (mut decoder, mut payload, mut controls) = (FrameDecoder::default(), Vec::new(), Vec::new());
    for piece in pieces {
        let mut bytes = piece.to_vec();
        match decoder.read(&mut bytes, 1000, |control| controls.push(control)) {
            Ok(count) => payload.extend_from_slice(&bytes[..count]),
            // What came before it within the same piece is not handed on: the connection ends.
            Err(violation) => return (Vec::new(), controls, Some(violation)),
        }
        if controls.contains(&FrameControl::Close) {
            break;
        }
    }
    (payload, controls, None)
}
