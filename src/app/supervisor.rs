//! What systemd is told (sd_notify(3)), and its watchdog: answered only while the loop of every shard turns.

use std::{
    env,
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            ffi::OsStrExt as _,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};

use crate::shard::Shards;

/// Who supervises this process; nobody, where it was started otherwise.
#[derive(Clone, Default)]
pub(super) struct Supervisor {
    socket: Option<Arc<(UnixDatagram, SocketAddr)>>,
    /// The watchdog wants to hear so often.
    watchdog: Option<Duration>,
}

impl Supervisor {
    /// As `NOTIFY_SOCKET` and `WATCHDOG_USEC` say.
    pub(super) fn from_environment() -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        match connect(&name) {
            Ok(socket) => Self { socket: Some(Arc::new(socket)), watchdog: watchdog_from_environment() },
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET cannot be used: the supervisor is told nothing");
                Self::default()
            }
        }
    }

    /// Devices are served.
    pub(super) fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// Files are read anew; [`ready`](Self::ready) says when that is done.
    pub(super) fn reloading(&self) {
        // Type=notify-reload asks for the time, to tell this reload from an earlier one.
        let now = clock_gettime(ClockId::Monotonic);
        let micros = now.tv_sec * 1_000_000 + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\nSTATUS=reading files anew"));
    }

    /// The end has begun, and takes so long at most.
    pub(super) fn stopping(&self, sessions: usize, at_most: Duration) {
        let micros = at_most.as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={micros}\nSTATUS=draining {sessions} sessions"));
    }

    /// Answers the watchdog for as long as every shard turns. Ends at once where there is none.
    pub(super) async fn watch(self, shards: Shards) {
        let Some(wanted) = self.watchdog else { return };
        let mut pulse = Pulse::new(shards.beats(), Instant::now());
        let mut looks = tokio::time::interval(wanted / LOOKS);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_alive = true;
        loop {
            looks.tick().await;
            let stuck = pulse.stuck(shards.beats(), wanted / 2, Instant::now());
            if stuck.is_empty() {
                self.tell("WATCHDOG=1");
            } else if was_alive {
                tracing::error!(shards = ?stuck, "shards stand still: the watchdog is not answered");
            }
            was_alive = stuck.is_empty();
        }
    }

    fn tell(&self, what: &str) {
        let Some((socket, address)) = self.socket.as_deref() else { return };
        if let Err(error) = socket.send_to_addr(what.as_bytes(), address) {
            tracing::warn!(%error, "the supervisor cannot be told");
        }
    }
}

/// When the loops of shards were last seen to turn.
struct Pulse {
    seen: Vec<(u64, Instant)>,
}

impl Pulse {
    fn new(beats: impl Iterator<Item = u64>, now: Instant) -> Self {
        Self { seen: beats.map(|beats| (beats, now)).collect() }
    }

    /// Which shards have not turned for so long.
    fn stuck(&mut self, beats: impl Iterator<Item = u64>, limit: Duration, now: Instant) -> Vec<usize> {
        let mut stuck = Vec::new();
        for (shard, (seen, beats)) in self.seen.iter_mut().zip(beats).enumerate() {
            if seen.0 != beats {
                *seen = (beats, now);
            } else if now.duration_since(seen.1) >= limit {
                stuck.push(shard);
            }
        }
        stuck
    }
}

fn connect(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "it begins with neither / nor @")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(TELL_WITHIN))?;
    Ok((socket, address))
}

fn watchdog_from_environment() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let is_ours = env::var_os("WATCHDOG_PID").is_none() || number("WATCHDOG_PID") == Some(process::id().into());
    number("WATCHDOG_USEC").filter(|micros| is_ours && *micros > 0).map(Duration::from_micros)
}

/// Looks at the shards within what the watchdog waits: one that comes late is no silence.
const LOOKS: u32 = 4;
/// A supervisor that does not read is not waited for.
const TELL_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_that_stands_still_is_stuck_until_it_turns_again() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let limit = Duration::from_millis(500);
        let mut pulse = Pulse::new([0, 0].into_iter(), start);
        let mut stuck = |beats: [u64; 2], ms| pulse.stuck(beats.into_iter(), limit, at(ms));
        assert_eq!(stuck([0, 0], 499), [0; 0], "it had no time to turn yet");
        assert_eq!(stuck([1, 1], 600), [0; 0]);
        assert_eq!(stuck([2, 1], 1_099), [0; 0]);
        assert_eq!(stuck([3, 1], 1_100), [1]);
        assert_eq!(stuck([3, 1], 1_700), [0, 1]);
        assert_eq!(stuck([3, 2], 1_800), [0]);
        assert_eq!(stuck([4, 2], 1_900), [0; 0]);
    }

    #[test]
    fn messages_reach_a_socket_in_the_file_system_and_an_abstract_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify");
        let name = format!("tollgate-test-{}", process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("a name");
        let ends = [
            (UnixDatagram::bind(&path).expect("bound"), path.into_os_string()),
            (UnixDatagram::bind_addr(&abstract_address).expect("bound"), format!("@{name}").into()),
        ];
        for (end, name) in ends {
            let socket = connect(&name).expect("an address");
            let supervisor = Supervisor { socket: Some(Arc::new(socket)), watchdog: None };
            supervisor.ready();
            let mut text = [0; 64];
            let len = end.recv(&mut text).expect("a message");
            assert_eq!(text[..len].split(|byte| *byte == b'\n').next(), Some(&b"READY=1"[..]));
        }
        assert!(connect(OsStr::new("relative")).is_err());
    }
}
