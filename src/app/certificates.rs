//! Certificates of the listeners: read anew when their files change, and an alarm in time before one ends.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{
    credential::Replaced,
    listener::{Tls, TlsFileError},
    meter::{self, Alarm, AlarmState},
    time::UnixSeconds,
};

/// What TLS listeners show and believe.
pub(super) struct Certificates {
    listeners: Vec<Arc<Tls>>,
    /// The last reading of the files has failed.
    is_faulty: AtomicBool,
}

impl Certificates {
    pub(super) fn new(listeners: Vec<Arc<Tls>>) -> Self {
        Self { listeners, is_faulty: AtomicBool::new(false) }
    }

    /// Every file that is to be watched.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.listeners.iter().flat_map(|tls| tls.files()).collect()
    }

    /// Reads every file anew. Those that hold are in force for every handshake from here on; what cannot be used leaves
    /// its predecessor where it is.
    pub(super) fn reload(&self, now: UnixSeconds) -> (Replaced, Vec<TlsFileError>) {
        let mut replaced = Replaced::Same;
        let mut faults = Vec::new();
        for tls in &self.listeners {
            let reloaded = tls.reload();
            if reloaded.authorities == Replaced::Changed {
                replaced = Replaced::Changed;
            }
            for fault in reloaded.faults {
                if !faults.contains(&fault) {
                    faults.push(fault);
                }
            }
        }
        self.is_faulty.store(!faults.is_empty(), Ordering::Relaxed);
        for fault in &faults {
            tracing::warn!(file = %fault.file.display(), what = fault.what, "a certificate file cannot be used: what was in force stays");
        }
        self.look_at_dates(now);
        (replaced, faults)
    }

    /// Tells when each certificate ends, and raises the alarm while that is near or a file is bad.
    pub(super) fn look_at_dates(&self, now: UnixSeconds) {
        let soon = now.plus(EXPIRY_NOTICE);
        let mut raised = self.is_faulty.load(Ordering::Relaxed);
        for tls in &self.listeners {
            for (file, end) in tls.certificates() {
                let file = file.display().to_string();
                metrics::gauge!(meter::CERTIFICATE_NOT_AFTER_SECONDS, "file" => file).set(end.0 as f64);
                raised |= end < soon;
            }
            raised |= tls.lists_end().is_some_and(|end| end <= now);
        }
        meter::alarm(Alarm::Certificate, if raised { AlarmState::On } else { AlarmState::Off });
    }
}

/// Time enough for a person to act.
const EXPIRY_NOTICE: Duration = Duration::from_hours(14 * 24);
