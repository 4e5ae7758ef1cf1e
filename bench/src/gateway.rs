//! The gateway under load: one shard, plain TCP, as many devices as are asked for.

use std::{
    env,
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{devices, numbered::pause, process::Process, revocation::Metrics, token};

/// A gateway that runs; its folder goes with it.
pub struct Gateway {
    pub process: Process,
    pub address: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
}

impl Gateway {
    pub fn start(program: &Path, hub: SocketAddr, devices: usize) -> io::Result<Self> {
        Self::start_with(program, hub, devices, "")
    }

    /// The same with more lines of configuration, at its end.
    pub fn start_with(program: &Path, hub: SocketAddr, devices: usize, more: &str) -> io::Result<Self> {
        let (address, admin) = (free_address()?, free_address()?);
        let folder = env::temp_dir().join(format!("tollgate-bench-{}-{}", process::id(), address.port()));
        fs::create_dir_all(&folder)?;
        let mut identities = String::from(SCOPE);
        for number in 0..devices {
            let device = devices::name(number);
            let key = token::device_key(&device);
            writeln!(identities, "[[device]]\nid = \"{device}\"\nprimary_key = \"{key}\"").expect("a String takes all");
        }
        let mut file =
            OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(folder.join(IDENTITIES))?;
        file.write_all(identities.as_bytes())?;
        fs::write(folder.join("revocations.jsonl"), "")?;
        fs::write(folder.join("gateway.toml"), configuration(address, admin, hub, devices) + more)?;
        let program = program.canonicalize()?;
        let mut command = Command::new(program);
        command.args(["run", "--config", "gateway.toml"]).current_dir(&folder).env("RUST_LOG", "warn");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = Process::start(&mut command, &folder.join("gateway.log"));
        until_listens(address)?;
        until_listens(admin)?;
        Ok(Self { process, address, admin, folder })
    }

    /// Its revocation list.
    pub fn list(&self) -> PathBuf {
        self.folder.join("revocations.jsonl")
    }

    /// Groups that its spool wrote, once that is told: such figures are set every two seconds.
    pub fn settled_syncs(&self) -> io::Result<f64> {
        pause(Duration::from_secs(3));
        Ok(self.metrics()?.value("tollgate_spool_syncs_total"))
    }

    /// Bytes of the files of its spool.
    pub fn spool_bytes(&self) -> io::Result<u64> {
        fs::read_dir(self.folder.join("var/spool"))?.map(|file| Ok(file?.metadata()?.len())).sum()
    }

    /// Resident memory at most since this was last asked, KiB.
    pub fn peak_kib(&self) -> u64 {
        let id = self.process.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or_default();
        // proc(5): 5 makes the peak begin anew. Where that is not allowed it is that of the whole run.
        let _ = fs::write(format!("/proc/{id}/clear_refs"), "5");
        peak
    }

    /// Processor time of its shard so far.
    pub fn shard_time(&self) -> io::Result<Duration> {
        for task in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.trim_end() == SHARD {
                // Of a thread: nanoseconds on a processor, then those in which it waited for one.
                let stat = fs::read_to_string(task.join("schedstat"))?;
                let nanos = stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok());
                return Ok(Duration::from_nanos(nanos.unwrap_or_default()));
            }
        }
        Err(io::Error::other(format!("the gateway has no thread {SHARD}")))
    }

    /// What `/metrics` says.
    pub fn metrics(&self) -> io::Result<Metrics> {
        let mut stream = TcpStream::connect(self.admin)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.admin)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(Metrics(text))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // What is left behind is a temporary folder: no reason to fail.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// One that nobody listens on.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

pub fn until_listens(address: SocketAddr) -> io::Result<()> {
    let started = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) if started.elapsed() > Duration::from_secs(30) => return Err(error),
            Err(_) => thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

fn configuration(address: SocketAddr, admin: SocketAddr, hub: SocketAddr, devices: usize) -> String {
    let connections = devices + 1000;
    format!(
        r#"[gateway]
name = "bench"
hostname = "localhost"
shards = 1
state_dir = "var"
identities = "{IDENTITIES}"
revocations = "revocations.jsonl"
[[listener]]
bind = "{address}"
transport = "tcp"
[limits]
connections_max = {connections}
connects_per_second_per_ip = 0
[[upstream]]
name = "hub"
kind = "mqtt"
url = "mqtt://{hub}"
version = 4
connections = 1
window = 65000
[[route]]
from = "devices/{{device}}/#"
upstream = "hub"
[admin]
bind = "{admin}"
"#
    )
}

/// The thread of the one shard.
const SHARD: &str = "tollgate-0";
const IDENTITIES: &str = "identities.toml";
const SCOPE: &str = "[defaults.scope]\npublish = [\"devices/{device}/messages/events/#\"]\nsubscribe = []\n";
