//! Holds `docs/denials.md` to the table in the code. `UPDATE_GOLDEN=1 cargo test --test denials` writes it anew.

use std::fmt::Write;

use tollgate::denial::{CloseReason, Denial};

#[test]
fn the_table_in_the_docs_is_that_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/denials.md");
    let expected = document();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(path, &expected).expect("docs/denials.md is writable");
    }
    let found = std::fs::read_to_string(path).expect("docs/denials.md is there");
    assert!(found == expected, "docs/denials.md is not what the code says: UPDATE_GOLDEN=1 cargo test --test denials");
}

fn document() -> String {
    let mut text = HEAD.to_owned();
    // Writing to a String cannot fail.
    for row in Denial::all() {
        let v4 = row.connack_v4.map_or_else(|| "–".to_owned(), |code| code.to_string());
        let azure = row.azure.map_or_else(|| "–".to_owned(), |number| number.to_string());
        let (number, tag, v5) = (row.denial.number(), row.tag, row.reason_v5);
        let _ =
            writeln!(text, "| {number} | `{tag}` | {v4} | 0x{v5:02X} | {azure} | {} | {} |", row.sentence, row.remedy);
    }
    text.push_str(CUTS);
    for (reason, what) in REASONS {
        let v5 = reason.disconnect_v5().map_or_else(|| "–".to_owned(), |code| format!("0x{code:02X}"));
        let azure = reason.azure().map_or_else(|| "–".to_owned(), |number| number.to_string());
        let _ = writeln!(text, "| `{}` | {v5} | {azure} | {what} |", reason.tag());
    }
    text
}

const REASONS: [(CloseReason, &str); 18] = [
    (CloseReason::ClientDisconnect, "DISCONNECT from the device."),
    (CloseReason::ConnectionLost, "The device closed or lost the connection without DISCONNECT."),
    (CloseReason::KeepAlive, "Nothing was heard for one and a half times the keep alive."),
    (CloseReason::Expired, "The token is past its end and the clock skew."),
    (CloseReason::Revoked, "The token, the device or its key is on the revocation list."),
    (CloseReason::GrantWithdrawn, "The device, its key or its scope is gone or was narrowed."),
    (CloseReason::TakenOver, "The same device connected again."),
    (CloseReason::Administrative, "An operator closed it: `tollgate sessions close DEVICE`."),
    (CloseReason::Draining, "The gateway is ending."),
    (CloseReason::Malformed, "A packet that cannot be parsed."),
    (CloseReason::ProtocolError, "A packet that may not come here."),
    (CloseReason::PacketTooLarge, "A packet larger than `maximum_packet_size`."),
    (CloseReason::ReceiveMaximumExceeded, "More unacknowledged PUBLISH than `receive_maximum`."),
    (CloseReason::TopicAliasInvalid, "A topic alias out of range or never set."),
    (
        CloseReason::RenewalRefused(Denial::SignatureInvalid),
        "The token that it renewed with was refused; number and reason are those of the refusal.",
    ),
    (CloseReason::PacketTimeout, "A packet that began did not come to its end within `packet_timeout`."),
    (CloseReason::NotReading, "The device took nothing of what it was sent for `packet_timeout`."),
    (CloseReason::InternalError, "The gateway's own trouble."),
];

const HEAD: &str = "\
# Refusals and cuts

Made from `src/denial.rs` by `UPDATE_GOLDEN=1 cargo test --test denials`; do not edit.

## Refusals

Number and tag are stable. The tag is the `denial` of logs, of `tollgate refusals` and of `tollgate_connects_total`.
The device learns the code alone: *3.1.1* is the return code of CONNACK (–: the connection is closed, or what was
refused is no CONNECT), *5.0* the reason code of whichever packet answers, *Azure* the number that Azure has for the same.

| number | tag | 3.1.1 | 5.0 | Azure | what | remedy |
|---|---|---|---|---|---|---|
";

const CUTS: &str = "
## Why a session ended

The tag is the `reason` of `tollgate_sessions_closed_total`. A device that speaks 3.1.1 sees the connection close; one
that speaks 5.0 is sent DISCONNECT with the code. Where a refusal can be answered only by closing, the reason is its tag.

| tag | 5.0 | Azure | what |
|---|---|---|---|
";
