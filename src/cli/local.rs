//! The gateway's own files, for commands that work without a running one.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use zeroize::Zeroizing;

use super::{ConfigFile, Outcome};
use crate::{clock::Clock, config::Config, time::UnixSeconds};

impl ConfigFile {
    /// The configuration that is meant, in spite of mistakes: a bad certificate must not stand in the way of a revocation.
    pub(super) fn load(&self) -> Result<Config, Outcome> {
        let file = self.gateway_file();
        let examined = Config::examine(file.path()).map_err(|mistake| Outcome::mistakes(&[mistake]))?;
        if !examined.mistakes.is_empty() {
            let (path, number) = (file.path().display(), examined.mistakes.len());
            eprintln!("note: {path} has mistakes ({number}), defaults stand in their place: see `tollgate check`");
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

/// To standard output. A reader that has gone away, as `head` does, has read enough: that is no failure.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
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
