//! Waiting for what can be observed; ports and folders of a test's own.

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process,
    sync::atomic::{AtomicU16, AtomicU32, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// Asks again and again until it holds; fails the test, saying what was waited for, when it does not in time.
#[track_caller]
pub fn until(what: &str, within: Duration, mut holds: impl FnMut() -> bool) {
    until_some(what, within, || holds().then_some(()));
}

/// The same for something that is there in the end.
#[track_caller]
pub fn until_some<T>(what: &str, within: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < within, "waited {within:?} for: {what}");
        // Between two looks, so that the one who is waited for gets the core.
        thread::park_timeout(BETWEEN_LOOKS);
    }
}

/// A port that nobody listens on, below the range that the kernel takes for outgoing connections: there, loopback can
/// connect to itself while the listener is away.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let own = u16::try_from(process::id() % 180).expect("below 180") * 100;
    for _ in 0..2_000 {
        let port = 12_000 + (own + NEXT.fetch_add(1, Relaxed)) % 18_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 12000 and 30000");
}

/// An empty folder below the build's own temporary one.
pub fn folder(name: &str) -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = format!("{name}-{}-{}", process::id(), NEXT.fetch_add(1, Relaxed));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique);
    if folder.exists() {
        fs::remove_dir_all(&folder).unwrap();
    }
    fs::create_dir_all(&folder).unwrap();
    folder
}

const BETWEEN_LOOKS: Duration = Duration::from_millis(5);
