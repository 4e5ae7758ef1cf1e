//! Revocation under a list of a million: from the write of the file to sessions closed, what the gateway says itself of deaf
//! and closed, memory and time of the list, and what others notice while all are cut (README.md).

use std::{
    fmt::Write as _,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{io::AsyncReadExt as _, runtime::Builder, task::JoinSet};

use crate::{
    devices::{self, Says},
    gateway::Gateway,
    hub, mqtt,
};

/// The whole of it.
pub fn run(program: &Path, sessions: usize, entries: usize) -> io::Result<()> {
    let devices = sessions + WITNESSES;
    let gateway = Gateway::start(program, hub::start()?, devices)?;
    let witnesses = Witnesses::start(gateway.address, sessions)?;
    let bench = Bench { gateway, list: many(entries), sessions };
    bench.load(entries)?;
    let quiet = witnesses.during(|| {
        thread::park_timeout(Duration::from_secs(3));
        Ok(())
    })?;
    println!("revocation: others' PUBACK while nothing is cut: {quiet}");
    for way in [Way::Append, Way::Rewrite] {
        for (count, rounds) in [(1, 20), (100, 5), (sessions, 1)] {
            let rounds = if way == Way::Rewrite { rounds.min(3) } else { rounds };
            let others = witnesses.during(|| bench.cut(way, count, rounds))?;
            if count == sessions {
                println!("revocation: others' PUBACK meanwhile: {others}");
            }
        }
    }
    let peak = bench.gateway.peak_kib();
    println!("revocation: resident at most, sessions and all swaps included: {} KiB", peak);
    Ok(())
}

/// How the file is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// Lines are added at its end.
    Append,
    /// Another is put in its place.
    Rewrite,
}

struct Bench {
    gateway: Gateway,
    /// What is always in it.
    list: String,
    sessions: usize,
}

impl Bench {
    /// Time and memory of the list: first of nothing, then a swap of one for another.
    fn load(&self, entries: usize) -> io::Result<()> {
        let before = self.gateway.process.resident_kib();
        let first = self.rewritten(&self.list, entries)?;
        let with_list = self.gateway.process.resident_kib();
        let peak = self.gateway.peak_kib();
        let second = self.rewritten(&format!("{}{{\"jti\": \"one-more\"}}\n", self.list), entries + 1)?;
        let after_swap = self.gateway.process.resident_kib();
        let swapping = self.gateway.peak_kib();
        let mib = |kib: u64| kib.saturating_sub(before) as f64 / 1024.0;
        println!(
            "revocation: {entries} entries, {:.0} MB: in force {first:.2?} after the write, {second:.2?} after a rewrite",
            self.list.len() as f64 / 1e6
        );
        println!(
            "revocation: memory of the list: {:.1} MiB (at most {:.1} while it is read), {:.1} after a swap (at most {:.1})",
            mib(with_list),
            mib(peak),
            mib(after_swap),
            mib(swapping)
        );
        self.rewritten(&self.list, entries).map(drop)
    }

    /// So many sessions are cut at once, so many times.
    fn cut(&self, way: Way, count: usize, rounds: usize) -> io::Result<()> {
        let before = Told::by(&self.gateway)?;
        let (mut closed, mut deaf, mut a_second) = (Vec::new(), Vec::new(), Vec::new());
        let mut busy = Duration::ZERO;
        for round in 0..rounds {
            let base = self.list.lines().count();
            self.rewritten(&self.list, base)?;
            let first = (round * count) % self.sessions;
            let numbers: Vec<usize> = (0..count).map(|n| (first + n) % self.sessions).collect();
            let streams = numbers
                .iter()
                .map(|number| devices::connect_one(self.gateway.address, &devices::name(*number), Says::Token));
            let ends = Ends::of(streams.collect::<io::Result<_>>()?)?;
            let deaf_before = self.gateway.metrics()?.value(DEAF_SUM);
            let busy_before = self.gateway.shard_time()?;
            let mut lines = String::new();
            for number in &numbers {
                writeln!(lines, "{{\"device\": \"{}\"}}", devices::name(*number)).expect("a String takes all");
            }
            let written = match way {
                Way::Append => self.append(&lines)?,
                Way::Rewrite => self.rewrite(&format!("{}{lines}", self.list))?,
            };
            let mut ends = ends.wait()?;
            busy += self.gateway.shard_time()?.saturating_sub(busy_before);
            ends.sort_unstable();
            // The sum of what the gateway measured in this round: exact, where buckets only have bounds.
            deaf.push(Duration::from_secs_f64((self.gateway.metrics()?.value(DEAF_SUM) - deaf_before).max(0.0)));
            if let [first, .., last] = ends[..] {
                a_second.push(count as f64 / last.saturating_duration_since(first).as_secs_f64());
            }
            // Its last lines cut before the rest was read: the next list is not to be taken for this one.
            self.in_force(base + count, written)?;
            closed.extend(ends.into_iter().map(|end| end.saturating_duration_since(written)));
        }
        deaf.sort_unstable();
        a_second.sort_by(f64::total_cmp);
        let told = Told::by(&self.gateway)?.since(&before);
        closed.sort_unstable();
        println!(
            "revocation: {way:?} that cuts {count} ({rounds} times): deaf, all of them, {:.2?} (worst {:.2?}) after in force; \
             closed p50 {:.1?}, p99 {:.1?}, last {:.1?} after the write, {:.0} a second from the first to the last, {:.1} µs of the \
             shard's processor time for each; {told}",
            at(&deaf, 0.5),
            at(&deaf, 1.0),
            at(&closed, 0.5),
            at(&closed, 0.99),
            at(&closed, 1.0),
            a_second.get(a_second.len() / 2).copied().unwrap_or(f64::NAN),
            busy.as_secs_f64() * 1e6 / (count * rounds) as f64
        );
        Ok(())
    }

    fn append(&self, lines: &str) -> io::Result<Instant> {
        let mut file = OpenOptions::new().append(true).open(self.gateway.list())?;
        let written = Instant::now();
        file.write_all(lines.as_bytes())?;
        Ok(written)
    }

    /// As `tollgate revocations` and git do it: beside it, then in its place.
    fn rewrite(&self, content: &str) -> io::Result<Instant> {
        let fresh = PathBuf::from(format!("{}.fresh", self.gateway.list().display()));
        fs::write(&fresh, content)?;
        let written = Instant::now();
        fs::rename(&fresh, self.gateway.list())?;
        Ok(written)
    }

    /// How long it took until the list was in force, as the metrics tell.
    fn rewritten(&self, content: &str, entries: usize) -> io::Result<Duration> {
        let written = self.rewrite(content)?;
        self.in_force(entries, written)
    }

    fn in_force(&self, entries: usize, written: Instant) -> io::Result<Duration> {
        loop {
            if self.gateway.metrics()?.value("tollgate_revocations") == entries as f64 {
                return Ok(written.elapsed());
            }
            if written.elapsed() > PATIENCE {
                return Err(io::Error::other(format!("{entries} entries are not in force after {PATIENCE:?}")));
            }
            thread::park_timeout(Duration::from_millis(2));
        }
    }
}

/// When each of some connections ended.
struct Ends(mpsc::Receiver<io::Result<Vec<Instant>>>);

impl Ends {
    fn of(streams: Vec<TcpStream>) -> io::Result<Self> {
        let (ready, is_ready) = mpsc::channel();
        let (ended, ends) = mpsc::channel();
        thread::spawn(move || {
            let watched = Builder::new_current_thread().enable_io().build().and_then(|runtime| {
                runtime.block_on(async {
                    let mut all = JoinSet::new();
                    for stream in streams {
                        stream.set_nonblocking(true)?;
                        let mut stream = tokio::net::TcpStream::from_std(stream)?;
                        all.spawn(async move {
                            // A reset is an end, too.
                            while stream.read(&mut [0; 64]).await.is_ok_and(|count| count > 0) {}
                            Instant::now()
                        });
                    }
                    tokio::task::yield_now().await;
                    let _ = ready.send(());
                    Ok(all.join_all().await)
                })
            });
            // Nobody waits any more where the bench gave up.
            let _ = ended.send(watched);
        });
        // Where it is dropped, the reason comes with the ends.
        let _ = is_ready.recv();
        Ok(Self(ends))
    }

    fn wait(self) -> io::Result<Vec<Instant>> {
        self.0.recv_timeout(PATIENCE).map_err(|_| io::Error::other("not every session was closed"))?
    }
}

/// Devices that publish one message after the other, and are not cut.
struct Witnesses {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<io::Result<()>>>,
    seen: mpsc::Receiver<Duration>,
}

impl Witnesses {
    fn start(address: SocketAddr, first: usize) -> io::Result<Self> {
        let (stop, (tell, seen)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let mut threads = Vec::new();
        for number in first..first + WITNESSES {
            let name = devices::name(number);
            let mut stream = devices::connect_one(address, &name, Says::Token)?;
            let (stop, tell) = (stop.clone(), tell.clone());
            let frame = mqtt::publish(&format!("devices/{name}/messages/events/"), &[b'x'; 64], 1);
            threads.push(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    stream.write_all(&frame)?;
                    stream.read_exact(&mut [0; 4])?;
                    // The bench is over.
                    let _ = tell.send(begun.elapsed());
                    thread::park_timeout(Duration::from_millis(5));
                }
                Ok(())
            }));
        }
        Ok(Self { stop, threads, seen })
    }

    /// What they noticed while something was done.
    fn during(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<String> {
        self.seen.try_iter().for_each(drop);
        work()?;
        let mut waited: Vec<Duration> = self.seen.try_iter().collect();
        waited.sort_unstable();
        let (number, p50, p99) = (waited.len(), at(&waited, 0.5), at(&waited, 0.99));
        Ok(format!("p50 {p50:.1?}, p99 {p99:.1?}, longest {:.1?} of {number}", at(&waited, 1.0)))
    }
}

impl Drop for Witnesses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One whose gateway is gone has ended already.
            let _ = thread.join();
        }
    }
}

/// What the gateway's own histograms say: in force from a change noticed, deaf and closed from a change in force.
struct Told([Vec<(f64, f64)>; 3]);

impl Told {
    fn by(gateway: &Gateway) -> io::Result<Self> {
        let metrics = gateway.metrics()?;
        let stages = ["apply", "deaf", "cut"];
        Ok(Self(stages.map(|stage| metrics.buckets(&format!("tollgate_revocation_{stage}_seconds")))))
    }

    fn since(self, before: &Self) -> String {
        let names = ["in force", "deaf", "closed"];
        let told = names.iter().zip(self.0).zip(&before.0).map(|((name, after), before)| {
            let earlier = |bound: f64| before.iter().find(|(b, _)| *b == bound).map_or(0.0, |(_, count)| *count);
            let counts: Vec<(f64, f64)> =
                after.into_iter().map(|(bound, count)| (bound, count - earlier(bound))).collect();
            let all = counts.last().map_or(0.0, |(_, count)| *count);
            let within =
                |part: f64| counts.iter().find(|(_, count)| *count >= all * part).map_or(f64::NAN, |(bound, _)| *bound);
            format!("{name} p50 ≤ {} s, p99 ≤ {} s", within(0.5), within(0.99))
        });
        format!("the gateway says: {}", told.collect::<Vec<_>>().join("; "))
    }
}

/// The text of `/metrics`.
pub struct Metrics(pub String);

impl Metrics {
    pub fn value(&self, name: &str) -> f64 {
        let line = self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok()).unwrap_or(f64::NAN)
    }

    fn buckets(&self, name: &str) -> Vec<(f64, f64)> {
        let mark = format!("{name}_bucket{{le=\"");
        let buckets = self.0.lines().filter_map(|line| {
            let (bound, count) = line.strip_prefix(&mark)?.split_once("\"} ")?;
            Some((bound.replace("+Inf", "inf").parse().ok()?, count.parse().ok()?))
        });
        buckets.collect()
    }
}

/// Half of it `jti`s, half tokens, as long as an operator's lines are.
fn many(entries: usize) -> String {
    let mut text = String::with_capacity(entries * 150);
    for number in 0..entries {
        let id = (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        let what = if number % 2 == 0 {
            format!("\"jti\": \"{id:032x}\"")
        } else {
            format!("\"token\": \"sha256:{id:032x}\"")
        };
        writeln!(
            text,
            "{{{what}, \"reason\": \"laptop stolen\", \"by\": \"site desk\", \"at\": \"2026-11-21T09:00:00Z\"}}"
        )
        .expect("a String takes all");
    }
    text
}

pub fn at(sorted: &[Duration], part: f64) -> Duration {
    let last = sorted.len().saturating_sub(1) as f64;
    sorted.get((last * part).ceil() as usize).copied().unwrap_or_default()
}

/// Of the histogram of deaf: all that was measured, in seconds.
const DEAF_SUM: &str = "tollgate_revocation_deaf_seconds_sum";
/// Devices that are watched, not cut.
const WITNESSES: usize = 4;
const PATIENCE: Duration = Duration::from_secs(120);
