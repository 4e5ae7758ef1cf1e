//! Properties of PUBLISH that say something of the message, and not of one connection (MQTT 5.0 §3.3.2.3): read and
//! written one by one, where what a device says is translated.

use super::{
    property::{Property, read_property_block},
    publish::PUBLISH_PROPERTIES,
};

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageProperty<'a> {
    /// Payload Format Indicator: whether the payload is UTF-8.
    IsText(bool),
    /// Message Expiry Interval, seconds.
    Expiry(u32),
    /// Response Topic.
    ResponseTopic(&'a str),
    /// Content Type.
    ContentType(&'a str),
    /// Correlation Data.
    CorrelationData(&'a [u8]),
    /// A user property: name and value.
    User(&'a str, &'a str),
}

/// Calls `each` for those that stand in a block of encoded properties, without its length.
pub fn message_properties<'a>(block: &'a [u8], mut each: impl FnMut(MessageProperty<'a>)) {
    read_property_block(block, PUBLISH_PROPERTIES, |property, _| {
        match property {
            Property::PayloadFormat(text) => each(MessageProperty::IsText(text)),
            Property::MessageExpiry(seconds) => each(MessageProperty::Expiry(seconds)),
            Property::ResponseTopic(topic) => each(MessageProperty::ResponseTopic(topic)),
            Property::ContentType(text) => each(MessageProperty::ContentType(text)),
            Property::CorrelationData(data) => each(MessageProperty::CorrelationData(data)),
            Property::User(name, value) => each(MessageProperty::User(name, value)),
            _ => {}
        }
        Ok(())
    })
    .expect("invariant: whoever made the block has read them");
}

/// Appends one. Its texts have at most 65,535 bytes each.
pub fn write_message_property(block: &mut Vec<u8>, property: MessageProperty<'_>) {
    match property {
        MessageProperty::IsText(text) => Property::PayloadFormat(text).write(block),
        MessageProperty::Expiry(seconds) => Property::MessageExpiry(seconds).write(block),
        MessageProperty::ResponseTopic(topic) => Property::ResponseTopic(topic).write(block),
        MessageProperty::ContentType(text) => Property::ContentType(text).write(block),
        MessageProperty::CorrelationData(data) => Property::CorrelationData(data).write(block),
        MessageProperty::User(name, value) => Property::User(name, value).write(block),
    }
}

/// Appends the identifier of a subscription, which a server names in every PUBLISH for it (MQTT 5.0 §3.3.2.3.8).
pub fn write_subscription_id(block: &mut Vec<u8>, id: u32) {
    Property::SubscriptionId(id).write(block);
}

/// Takes user properties out of a block by their names.
pub fn retain_user_properties(block: &mut Vec<u8>, keep: impl Fn(&str) -> bool) {
    let mut kept = Vec::with_capacity(block.len());
    read_property_block(block, PUBLISH_PROPERTIES, |property, raw| {
        if !matches!(property, Property::User(name, _) if !keep(name)) {
            kept.extend_from_slice(raw);
        }
        Ok(())
    })
    .expect("invariant: whoever made the block has read them");
    *block = kept;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_only_user_properties_are_taken_out() {
        let all = [
            MessageProperty::User("a", "1"),
            MessageProperty::ContentType("text/plain"),
            MessageProperty::User("b", ""),
            MessageProperty::CorrelationData(b"\x00\xff"),
            MessageProperty::User("a", "2"),
            MessageProperty::IsText(true),
            MessageProperty::Expiry(60),
            MessageProperty::ResponseTopic("answers"),
        ];
        let mut block = vec![0x23, 0, 1];
        all.iter().for_each(|property| write_message_property(&mut block, *property));
        let read = |block: &[u8]| {
            let mut found = Vec::new();
            message_properties(block, |property| found.push(format!("{property:?}")));
            found
        };
        assert_eq!(read(&block), all.map(|property| format!("{property:?}")));
        retain_user_properties(&mut block, |name| name != "a");
        assert_eq!(
            read(&block),
            [all[1], all[2], all[3], all[5], all[6], all[7]].map(|property| format!("{property:?}"))
        );
        assert!(block.starts_with(&[0x23, 0, 1]), "what is no user property stays: {block:?}");
    }
}
