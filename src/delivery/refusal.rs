//! Why a message is not for its hub.

use std::fmt;

/// What stands between a message and its hub for good, as the spool keeps it in a byte.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Refusal {
    /// The hub closed the connection on it, again and again, with nothing else on the wire.
    Closed,
    /// It waited for longer than `age_max`.
    TooOld,
    /// It is larger than the hub takes.
    TooLarge,
    /// The hub answered with this reason code (0x80 or more).
    Code(u8),
}

impl Refusal {
    /// As the record of a message has it; 0 is none.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Closed => 1,
            Self::TooOld => 2,
            Self::TooLarge => 3,
            Self::Code(code) => code,
        }
    }

    /// As a record has it; none where it says nothing, or what this program does not know.
    pub(super) fn of_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Closed),
            2 => Some(Self::TooOld),
            3 => Some(Self::TooLarge),
            0x80.. => Some(Self::Code(byte)),
            _ => None,
        }
    }

    /// One word for a metric.
    pub fn tag(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::TooOld => "too_old",
            Self::TooLarge => "too_large",
            Self::Code(_) => "refused",
        }
    }
}

/// Completes "The hub …", or names the message's own fault.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("the hub closes its connection on it"),
            Self::TooOld => f.write_str("it waited for longer than age_max"),
            Self::TooLarge => f.write_str("it is larger than the hub takes"),
            Self::Code(code) => write!(f, "the hub answered it with 0x{code:02x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_says_which_it_is() {
        let all = [Refusal::Closed, Refusal::TooOld, Refusal::TooLarge, Refusal::Code(0x80), Refusal::Code(0xff)];
        for refusal in all {
            assert_eq!(Refusal::of_byte(refusal.byte()), Some(refusal));
        }
        assert_eq!([0, 4, 0x7f].map(Refusal::of_byte), [None; 3]);
    }
}
