//! What the gateway says about a message on an MQTT 5 hub: user properties that the device cannot set itself.

use std::time::{Duration, UNIX_EPOCH};

use crate::packet::{MessageProperty, write_message_property};

/// The user properties that are the same for every message of a session, encoded once: `tollgate-device`,
/// `tollgate-gateway` and `tollgate-auth` (`sas/primary`, `jwt/factory`).
pub fn session_stamp(device: &str, gateway: &str, auth: &str) -> Vec<u8> {
    let mut stamp = Vec::with_capacity(3 * 24 + device.len() + gateway.len() + auth.len());
    for (name, value) in [(STAMPED_DEVICE, device), ("tollgate-gateway", gateway), ("tollgate-auth", auth)] {
        write_user_property(&mut stamp, name, value);
    }
    stamp
}

/// The user properties that differ from message to message: `tollgate-received` and `tollgate-id`.
pub(super) struct Stamper {
    received_ms: Option<u64>,
    received: Vec<u8>,
    id: Vec<u8>,
    counter: u64,
}

impl Stamper {
    /// Ids are `id_prefix`, a hyphen and a counter of 16 hexadecimal digits.
    pub(super) fn new(id_prefix: &str) -> Self {
        let mut id = vec![];
        write_user_property(&mut id, "tollgate-id", &format!("{id_prefix}-{:016x}", 0));
        Self { received_ms: None, received: vec![], id, counter: 0 }
    }

    /// Makes the properties of the next message, received at `received_ms` of the wall clock.
    pub(super) fn prepare(&mut self, received_ms: u64) {
        if self.received_ms != Some(received_ms) {
            self.received_ms = Some(received_ms);
            self.received.clear();
            let time = UNIX_EPOCH + Duration::from_millis(received_ms.min(RFC3339_MS_MAX));
            write_user_property(
                &mut self.received,
                "tollgate-received",
                &humantime::format_rfc3339_millis(time).to_string(),
            );
        }
        let digits = self.id.last_chunk_mut::<16>().expect("invariant: new() wrote 16 digits");
        for (i, digit) in digits.iter_mut().enumerate() {
            *digit = HEX[(self.counter >> (60 - 4 * i)) as usize & 15];
        }
    }

    /// The properties went with a message: the next has another id.
    pub(super) fn used(&mut self) {
        self.counter += 1;
    }

    /// `tollgate-received`, encoded.
    pub(super) fn received(&self) -> &[u8] {
        &self.received
    }

    /// `tollgate-id`, encoded.
    pub(super) fn id(&self) -> &[u8] {
        &self.id
    }
}

/// A text longer than 65,535 bytes is cut: names of devices and gateways are far shorter.
fn write_user_property(out: &mut Vec<u8>, name: &str, value: &str) {
    let (value, _) = value.split_at(value.floor_char_boundary(usize::from(u16::MAX)));
    write_message_property(out, MessageProperty::User(name, value));
}

/// The user property that says whose a message is.
pub const STAMPED_DEVICE: &str = "tollgate-device";
/// The last millisecond of the year 9999: RFC 3339 has four digits for a year.
const RFC3339_MS_MAX: u64 = 253_402_300_799_999;

const HEX: &[u8; 16] = b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_stamped_with_device_gateway_and_proof() {
        assert_eq!(
            session_stamp("pump-17", "edge-1", "sas/primary"),
            b"\x26\x00\x0ftollgate-device\x00\x07pump-17\x26\x00\x10tollgate-gateway\x00\x06edge-1\
              \x26\x00\x0dtollgate-auth\x00\x0bsas/primary"
        );
    }

    #[test]
    fn a_message_is_stamped_with_its_time_and_an_id_of_its_own() {
        let mut stamper = Stamper::new("edge-1-0-f00d");
        stamper.prepare(1_795_251_600_007);
        assert_eq!(stamper.received(), b"\x26\x00\x11tollgate-received\x00\x182026-11-21T09:00:00.007Z");
        assert_eq!(stamper.id(), b"\x26\x00\x0btollgate-id\x00\x1eedge-1-0-f00d-0000000000000000");
        for _ in 0..255 {
            stamper.used();
            stamper.prepare(u64::MAX);
        }
        assert_eq!(stamper.received(), b"\x26\x00\x11tollgate-received\x00\x189999-12-31T23:59:59.999Z");
        assert_eq!(stamper.id(), b"\x26\x00\x0btollgate-id\x00\x1eedge-1-0-f00d-00000000000000ff");
    }
}
