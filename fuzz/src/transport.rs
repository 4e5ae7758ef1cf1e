//! What stands before MQTT: the header of a balancer, and WebSocket frames.

use std::net::{Ipv4Addr, SocketAddr};

use tollgate::listener::{FrameControl, FrameDecoder, FrameViolation, parse_proxy_header};

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
