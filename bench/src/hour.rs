//! The hub away for an hour of load at 1,000 messages a second, fed as fast as devices can: what it costs in memory and on the
//! disk, how fast it is drained beside the direct rate of the same run, and what live traffic notices (README.md).

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    gateway::Gateway,
    numbered::{self, CheckingHub, Numbered},
    revocation::at,
};

/// The whole of it.
pub fn run(program: &Path, messages: usize) -> io::Result<()> {
    let hub = CheckingHub::start(DEVICES)?;
    let gateway = Gateway::start_with(program, hub.address, DEVICES + LIVE, SPOOL)?;
    let connect = |number| Numbered::connect(gateway.address, number, WINDOW, PAYLOAD_BYTES);
    let mut devices = (0..DEVICES).map(connect).collect::<io::Result<Vec<_>>>()?;

    let direct = direct_rate(&hub, &mut devices, messages / 10)?;
    println!("hour: direct: {direct:.0} messages a second, resident {} KiB", gateway.process.resident_kib());
    let already = hub.seen.first[0].load(Relaxed);

    let live = Live::start(&gateway)?;
    let with_hub = live.during(|| {
        numbered::pause(Duration::from_secs(3));
        Ok(())
    })?;
    println!("hour: live, 1,000 a second, PUBACK while the hub is there: {with_hub}");
    hub.leave()?;
    let (mut published, mut spooling) = (0, Duration::ZERO);
    let away = live.during(|| {
        for tenth in 1..=10 {
            let (count, took) = numbered::publish(&mut devices, messages / 10)?;
            published += count;
            spooling += took;
            let bytes = gateway.spool_bytes()?;
            println!(
                "hour: {:>3} % away: {:.0} messages a second, resident {} KiB (at most {}), {:.1} MiB on the disk",
                tenth * 10,
                count as f64 / took.as_secs_f64(),
                gateway.process.resident_kib(),
                gateway.peak_kib(),
                bytes as f64 / f64::from(1 << 20),
            );
        }
        Ok(())
    })?;
    println!("hour: live PUBACK meanwhile: {away}");
    println!("hour: spooled: {:.0} messages a second", published as f64 / spooling.as_secs_f64());
    wear(&gateway)?;

    let (returned, mut drain) = (Instant::now(), f64::NAN);
    hub.come_back()?;
    let draining = live.during(|| {
        hub.until(already + 1)?;
        let (began, before) = (Instant::now(), hub.seen.first[0].load(Relaxed));
        println!("hour: the hub is back: first message after {:.1?}", returned.elapsed());
        hub.until(already + published as u64)?;
        let drained = already + published as u64 - before;
        drain = drained as f64 / began.elapsed().as_secs_f64();
        println!("hour: drained in {:.1?}, resident at most {} KiB", began.elapsed(), gateway.peak_kib());
        Ok(())
    })?;
    println!("hour: live PUBACK while it drains: {draining}");
    println!("hour: drained {drain:.0} messages a second, {:.2} × direct", drain / direct);
    let sent_live = live.end()?;
    until_empty(&gateway)?;
    let (again, seen_live) = (hub.seen.again.load(Relaxed), hub.seen.first[1].load(Relaxed));
    hub.check()?;
    if seen_live != sent_live {
        return Err(io::Error::other(format!("{sent_live} live messages were acknowledged, {seen_live} came")));
    }
    println!("hour: all {} came, in order, {again} twice", already + published as u64 + seen_live);
    println!(
        "hour: at rest: {} KiB resident, {} bytes on the disk",
        gateway.process.resident_kib(),
        gateway.spool_bytes()?
    );
    wear(&gateway)
}

/// Messages a second while the hub acknowledges, a part published before to warm up.
pub fn direct_rate(hub: &CheckingHub, devices: &mut [Numbered], messages: usize) -> io::Result<f64> {
    numbered::publish(devices, messages / 4)?;
    let (count, took) = numbered::publish(devices, messages)?;
    hub.check()?;
    Ok(count as f64 / took.as_secs_f64())
}

/// What the spool wrote so far, for how much payload.
pub fn wear(gateway: &Gateway) -> io::Result<()> {
    let metrics = gateway.metrics()?;
    let appended = metrics.value("tollgate_spool_appended_bytes_total");
    let written = metrics.value("tollgate_spool_written_bytes_total");
    let syncs = metrics.value("tollgate_spool_syncs_total");
    println!(
        "spool: {:.1} MB written for {:.1} MB of payload: write amplification {:.2}; {syncs:.0} groups",
        written / 1e6,
        appended / 1e6,
        written / appended,
    );
    Ok(())
}

pub fn until_empty(gateway: &Gateway) -> io::Result<()> {
    let started = Instant::now();
    while gateway.metrics()?.value("tollgate_spool_messages") > 0.0 {
        if started.elapsed() > Duration::from_secs(60) {
            return Err(io::Error::other("the spool is not empty, although the hub has everything"));
        }
        thread::park_timeout(Duration::from_millis(100));
    }
    Ok(())
}

/// Devices that publish a hundred messages a second each, one after the other.
struct Live {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<io::Result<u64>>>,
    waited: mpsc::Receiver<Duration>,
}

impl Live {
    fn start(gateway: &Gateway) -> io::Result<Self> {
        let (stop, (tell, waited)) = (Arc::new(AtomicBool::new(false)), mpsc::channel());
        let mut threads = Vec::new();
        for number in DEVICES..DEVICES + LIVE {
            let mut device = Numbered::connect(gateway.address, number, 1, PAYLOAD_BYTES)?;
            let (stop, tell) = (stop.clone(), tell.clone());
            threads.push(thread::spawn(move || {
                let (started, mut count) = (Instant::now(), 0);
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    device.publish(1)?;
                    count += 1;
                    // The bench may be over.
                    let _ = tell.send(begun.elapsed());
                    let due = started + EVERY * u32::try_from(count).unwrap_or(u32::MAX);
                    thread::park_timeout(due.saturating_duration_since(Instant::now()));
                }
                Ok(count)
            }));
        }
        Ok(Self { stop, threads, waited })
    }

    /// What they waited for their PUBACKs while something was done.
    fn during(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<String> {
        self.waited.try_iter().for_each(drop);
        let began = Instant::now();
        work()?;
        let took = began.elapsed().as_secs_f64();
        let mut waited: Vec<Duration> = self.waited.try_iter().collect();
        waited.sort_unstable();
        let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|part| at(&waited, part));
        let rate = waited.len() as f64 / took;
        Ok(format!("p50 {p50:.1?}, p99 {p99:.1?}, longest {longest:.1?} ({rate:.0} a second)"))
    }

    /// How many were acknowledged.
    fn end(self) -> io::Result<u64> {
        self.stop.store(true, Relaxed);
        let ended = self.threads.into_iter().map(|thread| thread.join().expect("invariant: it does not panic"));
        ended.sum()
    }
}

const DEVICES: usize = 100;
const WINDOW: usize = 100;
const PAYLOAD_BYTES: usize = 100;
const LIVE: usize = 10;
/// Of a live device.
const EVERY: Duration = Duration::from_millis(10);
const SPOOL: &str = "[spool]\nsize_max = \"2 GiB\"\n";
