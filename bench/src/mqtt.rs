//! As much of MQTT 3.1.1 as load, hub and floor need.

/// First byte, length of the fixed header, and of the whole; `None`: not all there yet.
pub fn frame(bytes: &[u8]) -> Option<(u8, usize, usize)> {
    let (first, rest) = bytes.split_first()?;
    let end = rest.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let length = rest.iter().take(end + 1).rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7F));
    let head = end + 2;
    (bytes.len() >= head + length).then_some((*first, head, head + length))
}

/// Where the packet id of a PUBLISH with QoS 1 stands.
pub fn packet_id_at(frame: &[u8], head: usize) -> usize {
    head + 2 + usize::from(number(frame, head))
}

pub fn number(bytes: &[u8], at: usize) -> u16 {
    let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
    u16::from_be_bytes([byte(at), byte(at + 1)])
}

pub fn puback(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x40, 2, high, low]
}

pub fn connect(client_id: &str, login: Option<(&str, &str)>) -> Vec<u8> {
    let mut body = text("MQTT");
    body.extend([4, if login.is_some() { 0xC2 } else { 2 }, 4, 0]);
    body.extend(text(client_id));
    if let Some((user_name, password)) = login {
        body.extend(text(user_name));
        body.extend(text(password));
    }
    packet(0x10, &body)
}

pub fn publish(topic: &str, payload: &[u8], id: u16) -> Vec<u8> {
    let mut body = text(topic);
    body.extend(id.to_be_bytes());
    body.extend(payload);
    packet(0x32, &body)
}

fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut length = body.len();
    while length >= 0x80 {
        packet.push(u8::try_from(length & 0x7F).expect("seven bits") | 0x80);
        length >>= 7;
    }
    packet.push(u8::try_from(length).expect("seven bits"));
    packet.extend(body);
    packet
}

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).expect("at most 65535 bytes");
    length.to_be_bytes().into_iter().chain(text.bytes()).collect()
}
