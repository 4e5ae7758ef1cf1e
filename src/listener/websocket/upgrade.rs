//! The HTTP request that becomes a WebSocket (RFC 6455 §4.2), for MQTT alone (MQTT 5.0 §6). No I/O.

use std::{fmt, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use percent_encoding::percent_decode_str;
use sha1::{Digest, Sha1};
use zeroize::Zeroizing;

/// What a WebSocket listener takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocketRules {
    /// Paths that lead to MQTT, decoded.
    pub paths: Vec<String>,
    /// Web pages whose scripts may connect, as a browser names them (`https://panel.example`). A request without an Origin is
    /// no browser's and is not held to it.
    pub origins: Vec<String>,
    /// The gateway's own names: a request whose Origin is the very host and port that it was sent to is let in under them.
    pub hosts: Vec<String>,
}

/// A request that becomes a WebSocket.
pub struct Upgrade {
    /// How many bytes of what was read it took.
    pub used: usize,
    /// `Authorization: Bearer`: the token of a client that cannot put one into CONNECT.
    pub bearer: Option<Zeroizing<Vec<u8>>>,
    /// The answer that agrees.
    pub answer: Vec<u8>,
}

/// A request that does not.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Declined {
    status: &'static str,
    headers: &'static str,
    /// One sentence, for the client and for the operator.
    pub(super) why: String,
}

impl Declined {
    fn new(status: &'static str, why: impl Into<String>) -> Self {
        Self { status, headers: "", why: why.into() }
    }

    /// The answer.
    pub fn answer(&self) -> Vec<u8> {
        let Self { status, headers, why } = self;
        format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nConnection: close\r\n\r\n{why}\n",
            why.len() + 1
        )
        .into_bytes()
    }
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.status, self.why)
    }
}

/// Reads a request from the first bytes of a connection; `None`: it has not come whole.
///
/// # Errors
/// [`Declined`], with the answer.
pub fn read(bytes: &[u8], rules: &WebSocketRules) -> Result<Option<Upgrade>, Declined> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let used = match request.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Declined::new("431 Request Header Fields Too Large", "The request's head is too large."));
        }
        Err(_) => return Err(Declined::new("400 Bad Request", "This is no HTTP request.")),
    };
    check_target(&request, rules)?;
    let headers = Headers(request.headers);
    check_origin(&headers, rules)?;
    let key = check_handshake(&headers)?;
    let bearer = read_bearer(&headers)?;
    let accept = STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize());
    let answer = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
    );
    Ok(Some(Upgrade { used, bearer, answer: answer.into_bytes() }))
}

fn check_target(request: &httparse::Request<'_, '_>, rules: &WebSocketRules) -> Result<(), Declined> {
    if request.method != Some("GET") || request.version != Some(1) {
        return Err(Declined {
            headers: "Allow: GET\r\n",
            ..Declined::new("405 Method Not Allowed", "A WebSocket begins with GET and HTTP/1.1.")
        });
    }
    let target = request.path.unwrap_or_default();
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = percent_decode_str(path).decode_utf8_lossy();
    if !rules.paths.iter().any(|ours| *ours == path) {
        return Err(Declined::new("404 Not Found", "There is nothing at this path; MQTT is at another."));
    }
    // Threat T36: a URL stands in logs of proxies, so that a token in it is a token lost. Azure's SDKs say one thing there.
    match query.filter(|query| !query.is_empty() && !query.starts_with(AZURE_QUERY)) {
        Some(_) => {
            Err(Declined::new("400 Bad Request", "No query is taken: a token belongs into CONNECT, never into a URL."))
        }
        None => Ok(()),
    }
}

/// RFC 6455 §10.2: a page of somewhere else must not speak with this site's network through its visitors' browsers.
fn check_origin(headers: &Headers<'_, '_>, rules: &WebSocketRules) -> Result<(), Declined> {
    let (origin, host) = (headers.only("origin")?, headers.only("host")?);
    let Some(origin) = origin else { return Ok(()) };
    let is_listed = rules.origins.iter().any(|ours| ours.eq_ignore_ascii_case(origin));
    if is_listed || host.is_some_and(|host| is_own(origin, host, rules)) {
        return Ok(());
    }
    let why = "Scripts of this Origin may not connect: `origins` of the listener does not hold it.";
    Err(Declined::new("403 Forbidden", why))
}

/// paho, and with it Azure's SDK for Python, says that it comes from where it goes to. The name must be the gateway's own, an
/// address or localhost: a name that an attacker's DNS points here (DNS rebinding) is none of these.
fn is_own(origin: &str, host: &str, rules: &WebSocketRules) -> bool {
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => authority,
    };
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_name =
        rules.hosts.iter().map(String::as_str).chain(["localhost"]).any(|ours| ours.eq_ignore_ascii_case(name));
    authority.eq_ignore_ascii_case(host) && (is_address || is_name)
}

/// RFC 6455 §4.2.1; answers the key.
fn check_handshake<'h>(headers: &Headers<'h, '_>) -> Result<&'h str, Declined> {
    let bad = |why: &str| Declined::new("400 Bad Request", why);
    if !headers.list_holds("upgrade", "websocket") || !headers.list_holds("connection", "upgrade") {
        return Err(Declined {
            headers: "Upgrade: websocket\r\nConnection: Upgrade\r\n",
            ..Declined::new("426 Upgrade Required", "Here is MQTT over WebSocket: the request asks for no upgrade.")
        });
    }
    if headers.only("sec-websocket-version")? != Some("13") {
        return Err(Declined {
            headers: "Sec-WebSocket-Version: 13\r\n",
            ..Declined::new("426 Upgrade Required", "Only version 13 of WebSocket is spoken.")
        });
    }
    // MQTT 5.0 [MQTT-6.0.0-3]
    if !headers.list_holds("sec-websocket-protocol", SUBPROTOCOL) {
        return Err(bad("The client has to offer the sub-protocol \"mqtt\"."));
    }
    if headers.all("content-length").chain(headers.all("transfer-encoding")).next().is_some() {
        return Err(bad("A request that becomes a WebSocket has no body."));
    }
    let key = headers.only("sec-websocket-key")?.unwrap_or_default();
    match STANDARD.decode(key) {
        Ok(nonce) if nonce.len() == NONCE_BYTES => Ok(key),
        _ => Err(bad("Sec-WebSocket-Key has to be 16 bytes in base64.")),
    }
}

/// RFC 6750 §2.1.
fn read_bearer(headers: &Headers<'_, '_>) -> Result<Option<Zeroizing<Vec<u8>>>, Declined> {
    let Some(value) = headers.only("authorization")? else { return Ok(None) };
    let token = value.split_at_checked(BEARER.len()).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(BEARER));
    match token.map(|(_, token)| token.trim()).filter(|token| !token.is_empty()) {
        Some(token) => Ok(Some(Zeroizing::new(token.as_bytes().to_vec()))),
        None => Err(Declined::new("400 Bad Request", "Authorization has to be \"Bearer \" and a token.")),
    }
}

struct Headers<'h, 'b>(&'h [httparse::Header<'b>]);

impl<'h, 'b: 'h> Headers<'h, 'b> {
    fn all(&self, name: &'static str) -> impl Iterator<Item = &'h [u8]> {
        self.0.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    }

    /// The value of a header that may stand once.
    fn only(&self, name: &'static str) -> Result<Option<&'h str>, Declined> {
        let mut all = self.all(name);
        let (first, second) = (all.next(), all.next());
        let value = first.map(|value| std::str::from_utf8(value).map(str::trim));
        match (value, second) {
            (None, _) => Ok(None),
            (Some(Ok(value)), None) => Ok(Some(value)),
            _ => Err(Declined::new("400 Bad Request", format!("{name} stands twice, or is no text."))),
        }
    }

    /// Whether a comma-separated list, of one header or of several, holds a word.
    fn list_holds(&self, name: &'static str, word: &str) -> bool {
        let words = self.all(name).filter_map(|value| std::str::from_utf8(value).ok()).flat_map(|v| v.split(','));
        words.map(str::trim).any(|found| found.eq_ignore_ascii_case(word))
    }
}

/// MQTT 5.0 [MQTT-6.0.0-3], and for 3.1.1 [MQTT-6.0.0-3] likewise.
const SUBPROTOCOL: &str = "mqtt";
/// RFC 6455 §1.3.
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// RFC 6455 §4.1.
const NONCE_BYTES: usize = 16;
const BEARER: &str = "bearer ";
/// What the Java, C and Python SDKs of Azure put behind the path; it carries no secret and changes nothing here.
const AZURE_QUERY: &str = "iothub-no-client-cert=";
/// A request with the longest token that is taken, and what browsers and proxies add.
pub(super) const HEAD_BYTES_MAX: usize = 24 << 10;
const HEADERS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> WebSocketRules {
        WebSocketRules {
            paths: ["/mqtt", "/$iothub/websocket"].map(str::to_owned).into(),
            origins: vec!["https://panel.example".into()],
            hosts: vec!["edge.example".into()],
        }
    }

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: gateway\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n";

    /// The answer's status to the good request with something replaced, and headers added.
    fn status(from: &str, to: &str, added: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let text = format!("{}{added}\r\n", GOOD.replacen(from, to, 1));
        let answer = match read(text.as_bytes(), &rules()) {
            Ok(upgrade) => upgrade.expect("it is whole").answer,
            Err(declined) => declined.answer(),
        };
        let answer = String::from_utf8(answer).expect("text");
        answer.split(' ').nth(1).expect("a status").to_owned()
    }

    #[test]
    fn a_good_request_is_agreed_to_as_the_standard_shows() {
        let text = format!("{GOOD}\r\nframes");
        let upgrade = read(text.as_bytes(), &rules()).expect("agreed").expect("whole");
        assert_eq!((upgrade.used, upgrade.bearer), (text.len() - 6, None));
        let answer = String::from_utf8(upgrade.answer).expect("text");
        assert!(
            answer.contains("\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
            "RFC 6455 §1.3: {answer}"
        );
        assert!(answer.contains("\r\nSec-WebSocket-Protocol: mqtt\r\n"), "{answer}");
        assert!(!answer.to_lowercase().contains("extensions"), "{answer}");
    }

    #[test]
    fn requests_are_declined_with_the_status_that_says_why() {
        for (from, to, added, expected) in [
            ("", "", "", "101"),
            ("/mqtt ", "/$iothub/websocket ", "", "101"),
            ("/mqtt ", "/%24iothub/websocket?iothub-no-client-cert=true ", "", "101"),
            ("/mqtt ", "/mqtt? ", "", "101"),
            ("websocket", "WebSocket", "Sec-WebSocket-Extensions: permessage-deflate\r\n", "101"),
            ("", "", "Origin: https://panel.example\r\n", "101"),
            ("/mqtt ", "/ ", "", "404"),
            ("/mqtt ", "/MQTT ", "", "404"),
            ("/mqtt ", "/mqtt/ ", "", "404"),
            ("/mqtt ", "/mqtt?token=abc ", "", "400"),
            ("/mqtt ", "/mqtt?SharedAccessSignature+sr=x ", "", "400"),
            ("GET", "POST", "", "405"),
            ("HTTP/1.1", "HTTP/1.0", "", "405"),
            ("Upgrade: websocket", "Upgrade: h2c", "", "426"),
            ("keep-alive, Upgrade", "keep-alive", "", "426"),
            ("Version: 13", "Version: 8", "", "426"),
            ("mqttv3.1, mqtt", "mqttv3.1", "", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZQ==", "", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "", "", "400"),
            ("", "", "Content-Length: 3\r\n", "400"),
            ("", "", "Transfer-Encoding: chunked\r\n", "400"),
            ("", "", "Origin: https://evil.example\r\n", "403"),
            ("", "", "Origin: null\r\n", "403"),
            ("gateway", "127.0.0.1:8080", "Origin: https://127.0.0.1:8080\r\n", "101"),
            ("gateway", "[::1]:8080", "Origin: http://[::1]:8080\r\n", "101"),
            ("gateway", "localhost", "Origin: http://localhost\r\n", "101"),
            ("gateway", "EDGE.example:443", "Origin: https://edge.example:443\r\n", "101"),
            ("gateway", "127.0.0.1:8080", "Origin: https://127.0.0.1:9090\r\n", "403"),
            ("gateway", "rebound.example", "Origin: http://rebound.example\r\n", "403"),
            ("gateway", "edge.example", "Origin: https://edge.example.evil.example\r\n", "403"),
            ("", "", "Origin: https://panel.example\r\nOrigin: https://evil.example\r\n", "400"),
            ("", "", "Authorization: Basic eDp5\r\n", "400"),
            ("", "", "Authorization: Bearer \r\n", "400"),
            ("", "", "Authorization: Bearer a\r\nAuthorization: Bearer b\r\n", "400"),
            ("Host: gateway", "Host gateway", "", "400"),
        ] {
            assert_eq!(status(from, to, added), expected, "{from:?} → {to:?}, {added:?}");
        }
    }

    #[test]
    fn a_bearer_token_is_taken_as_it_is_sent() {
        for (value, token) in
            [("Bearer a.b.c", "a.b.c"), ("bearer  SharedAccessSignature sr=x", "SharedAccessSignature sr=x")]
        {
            let text = format!("{GOOD}Authorization: {value}\r\n\r\n");
            let bearer = read(text.as_bytes(), &rules()).expect("agreed").expect("whole").bearer;
            assert_eq!(bearer.as_deref().map(Vec::as_slice), Some(token.as_bytes()));
        }
    }

    #[test]
    fn a_head_that_does_not_end_is_refused_at_its_limit() {
        let mut text = String::from(GOOD);
        let whole = format!("{GOOD}\r\n");
        for end in 0..whole.len() {
            assert!(read(&whole.as_bytes()[..end], &rules()).expect("not yet wrong").is_none(), "{end}");
        }
        while text.len() < HEAD_BYTES_MAX {
            text.push_str("X-Fill: 0123456789012345678901234567890123456789012345678901234567890123456789\r\n");
        }
        assert!(read(text.as_bytes(), &rules()).is_err_and(|declined| declined.status.starts_with("431")));
    }
}
