//! The gateway's own files, for commands that work without a running one.

use std::{
    borrow::Cow,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use zeroize::Zeroizing;

use super::{ConfigFile, Outcome, list::wrapped};
use crate::{clock::Clock, config::Config, time::UnixSeconds};

impl ConfigFile {
    /// The configuration that is meant, in spite of mistakes: a bad certificate must not stand in the way of a revocation.
    pub(super) fn load(&self) -> Result<Config, Outcome> {
        let file = self.gateway_file();
        let examined = Config::examine(file.path()).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
        if !examined.mistakes.is_empty() {
            let (path, number) = (file.path().display(), examined.mistakes.len());
            note(&format!("note: {path} has mistakes ({number}), defaults stand in their place: see `tollgate check`"));
        }
        Ok(examined.config)
    }
}

impl ConfigFile {
    /// As [`load`](Self::load), where it is no matter that there is none.
    pub(super) fn load_quietly(&self) -> Result<Config, Outcome> {
        let examined = Config::examine(self.gateway_file().path()).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
        Ok(examined.config)
    }
}

/// The wall clock's second.
pub(super) fn now() -> UnixSeconds {
    UnixSeconds::from_system(SystemTime::now())
}

/// As the gateway of this configuration tells it: a wall clock that was put back, or far ahead, is not believed.
pub(super) fn now_by(config: &Config) -> UnixSeconds {
    Clock::glance(&config.gateway.state_dir).now()
}

/// A token from standard input: one line.
pub(super) fn token_from_input() -> Result<Zeroizing<String>, Outcome> {
    let mut text = Zeroizing::new(String::new());
    let read = io::stdin().take(TOKEN_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|error| Outcome::Failed(format!("cannot read the token from standard input: {error}")))?;
    // A shell ends a line; everything else is the token's, and may be its mistake.
    let token = text.strip_suffix('\n').unwrap_or(&text);
    let token = token.strip_suffix('\r').unwrap_or(token);
    match token.len() as u64 {
        0 => Err(Outcome::Usage("no token on standard input: pipe it in, as in `… | tollgate token inspect -`".into())),
        1..=TOKEN_BYTES_MAX => Ok(Zeroizing::new(token.to_owned())),
        _ => Err(Outcome::Failed("what is on standard input is no token: it has more than 64 KiB".into())),
    }
}

/// To standard output, [`harmless`]. A reader that has gone away, as `head` does, has read enough: that is no failure.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(harmless(text).as_bytes()).and_then(|()| out.flush());
}

/// To standard error, [`harmless`] and no wider than a screen. Where that is closed nobody is to be told.
pub(super) fn note(text: &str) {
    let _ = io::stderr().lock().write_all(harmless(&wrapped(text)).as_bytes());
}

/// What is quoted of files and peers does nothing to a terminal. The escapes are those of JSON, which stays what it says.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    let is_harmful = |c: char| {
        let turns = matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        turns || (c.is_control() && !matches!(c, '\n' | '\t'))
    };
    if !text.contains(is_harmful) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if is_harmful(c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// Where a listener is reached from this machine.
pub(super) fn reachable(bind: SocketAddr) -> SocketAddr {
    let ip = match bind.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bind.port())
}

/// As much as a CONNECT may carry before authentication.
const TOKEN_BYTES_MAX: u64 = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_does_nothing_to_a_terminal_and_json_stays_json() {
        let text = "\u{1b}]0;x\u{7}\u{9b}2J\u{202e}\u{7f}\r";
        assert_eq!(harmless(text), "\\u001b]0;x\\u0007\\u009b2J\\u202e\\u007f\\u000d");
        let json = serde_json::to_string_pretty(&[text]).expect("text");
        assert_eq!(serde_json::from_str::<Vec<String>>(&harmless(&json)).expect("still JSON"), [text]);
        assert!(matches!(harmless("a\tb\né"), Cow::Borrowed("a\tb\né")));
    }
}
