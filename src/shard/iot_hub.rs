//! What the profile azure makes of a message on its way: the property bag in the topic, RETAIN as a property, and names
//! that only a hub may say.

use crate::{
    denial::Denial,
    packet::{MessageProperty, ProtocolVersion, retain_user_properties, write_message_property},
    policy::{Grant, Profile},
    route::bag::{self, BagError},
    topic::TopicName,
};

/// Whether a session's messages are read as IoT Hub reads them.
#[inline]
pub(super) fn applies(grant: &Grant) -> bool {
    grant.profile == Profile::Azure
}

/// The topic of a message, and in `properties`, which hold the device's own, all that its bag and RETAIN say.
pub(super) fn upwards<'t>(
    topic: TopicName<'t>,
    retain: bool,
    properties: &mut Vec<u8>,
    buffer: &'t mut String,
) -> Result<TopicName<'t>, Denial> {
    if !properties.is_empty() {
        retain_user_properties(properties, |name| !bag::is_reserved(name));
    }
    let topic = bag::read_bag(topic, properties, buffer).map_err(|error: BagError| {
        tracing::debug!(%error, "a property bag is refused");
        Denial::PropertyBagInvalid
    })?;
    if retain {
        let (name, value) = bag::RETAIN;
        write_message_property(properties, MessageProperty::User(name, value));
    }
    Ok(topic)
}

/// The topic of a message that was sent with RETAIN, where its hub has no properties.
pub(super) fn retained<'t>(topic: &'t str, hub: ProtocolVersion, buffer: &'t mut String) -> &'t str {
    let bagged = (hub == ProtocolVersion::V3_1_1).then(|| bag::with_retain(topic, buffer)).flatten();
    bagged.unwrap_or(topic)
}

/// The topic of a command as a device of this version is sent it.
pub(super) fn downwards<'t>(
    topic: TopicName<'t>,
    properties: &[u8],
    device: ProtocolVersion,
    buffer: &'t mut String,
) -> TopicName<'t> {
    let bagged = (device == ProtocolVersion::V3_1_1 && !properties.is_empty())
        .then(|| bag::write_bag(topic, properties, buffer))
        .flatten();
    bagged.unwrap_or(topic)
}
