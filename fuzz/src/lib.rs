//! What is tried, with the equation that has to hold: a parser that only does not panic is not yet right. Each function
//! is a target of `cargo fuzz`, and `tests/fuzz_corpus.rs` calls all of them with the corpus.

mod bytes;
mod credentials;
mod names;
mod packets;
mod session;
mod spool;
mod topics;
mod transport;

pub use credentials::{jwks, revocation_line, signed_list, tokens};
pub use names::device_names;
#[cfg(feature = "nats")]
pub use names::{nats_headers, nats_subjects};
pub use packets::{answers, packets};
pub use session::{session, session_image, session_resumed};
pub use spool::spool;
pub use topics::{bag, topics};
pub use transport::{proxy_header, websocket_frames, websocket_upgrade};

/// The name of its corpus, and what is called with each file of it.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("packets", packets),
    ("answers", answers),
    ("session", session),
    ("session_resumed", session_resumed),
    ("session_image", session_image),
    ("tokens", tokens),
    ("topics", topics),
    ("bag", bag),
    ("revocation_line", revocation_line),
    ("signed_list", signed_list),
    ("jwks", jwks),
    ("proxy_header", proxy_header),
    ("websocket_frames", websocket_frames),
    ("websocket_upgrade", websocket_upgrade),
    ("device_names", device_names),
    #[cfg(feature = "nats")]
    ("nats_subjects", nats_subjects),
    #[cfg(feature = "nats")]
    ("nats_headers", nats_headers),
    ("spool", spool),
];
