//! What is tried, with the equation that has to hold: a parser that only does not panic is not yet right. Each function
//! is a target of `cargo fuzz`, and `tests/fuzz_corpus.rs` calls all of them with the corpus.

mod bytes;
mod credentials;
mod packets;
mod session;
mod spool;
mod topics;
mod transport;

pub use credentials::{jwks, revocation_line, signed_list, tokens};
pub use packets::{answers, packets};
pub use session::{session, session_image};
pub use spool::spool;
pub use topics::{bag, topics};
pub use transport::{proxy_header, websocket_frames};

/// Every target, by the name of its corpus.
pub const TARGETS: [(&str, fn(&[u8])); 13] = [
    ("packets", packets),
    ("answers", answers),
    ("session", session),
    ("session_image", session_image),
    ("tokens", tokens),
    ("topics", topics),
    ("bag", bag),
    ("revocation_line", revocation_line),
    ("signed_list", signed_list),
    ("jwks", jwks),
    ("proxy_header", proxy_header),
    ("websocket_frames", websocket_frames),
    ("spool", spool),
];
