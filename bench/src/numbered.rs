//! Numbered messages, so that what is lost or out of order shows: devices that publish them, and a hub that checks them, and
//! that goes away and comes back.

use std::{
    io::{self, ErrorKind, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{
    devices::{self, Says},
    mqtt,
};

/// A device that publishes 0, 1, 2 … in ten digits, with bytes behind them.
pub struct Numbered {
    stream: TcpStream,
    /// A window's halves, each written at once: while one is acknowledged the other is on its way.
    halves: [Vec<u8>; 2],
    frame_bytes: usize,
    digits_at: usize,
    next: u64,
}

impl Numbered {
    pub fn connect(address: SocketAddr, number: usize, window: usize, payload_bytes: usize) -> io::Result<Self> {
        let name = devices::name(number);
        let stream = devices::connect_one(address, &name, Says::Token)?;
        let topic = format!("devices/{name}/messages/events/");
        let payload = vec![b'0'; payload_bytes.max(DIGITS)];
        let frame = |id| mqtt::publish(&topic, &payload, u16::try_from(id).expect("a window is small"));
        let half = (window / 2).max(1);
        let halves = [0, half].map(|before| (1..=half).flat_map(|n| frame(before + n)).collect());
        let frame_bytes = frame(1).len();
        Ok(Self { stream, halves, frame_bytes, digits_at: frame_bytes - payload.len(), next: 0 })
    }

    /// Gives how many were published: whole halves of the window.
    pub fn publish(&mut self, count: usize) -> io::Result<usize> {
        let half = self.halves[0].len() / self.frame_bytes;
        let batches = count.div_ceil(half);
        let mut acknowledgements = vec![0; half * 4];
        self.write(0)?;
        for batch in 1..batches {
            self.write(batch % 2)?;
            // The ids of a half are free again when its acknowledgements are here.
            self.stream.read_exact(&mut acknowledgements)?;
        }
        self.stream.read_exact(&mut acknowledgements)?;
        Ok(batches * half)
    }

    fn write(&mut self, half: usize) -> io::Result<()> {
        for frame in self.halves[half].chunks_exact_mut(self.frame_bytes) {
            let digits = frame.get_mut(self.digits_at..self.digits_at + DIGITS).expect("invariant: a payload has them");
            digits.copy_from_slice(format!("{:010}", self.next).as_bytes());
            self.next += 1;
        }
        self.stream.write_all(&self.halves[half])
    }
}

/// Publishes so many together, from all of them at once; gives how many there were and how long that took.
pub fn publish(all: &mut [Numbered], count: usize) -> io::Result<(usize, Duration)> {
    let (each, started) = (count / all.len(), Instant::now());
    let published = thread::scope(|scope| {
        let runs: Vec<_> = all.iter_mut().map(|device| scope.spawn(move || device.publish(each))).collect();
        runs.into_iter()
            .map(|run| run.join().expect("invariant: a device's thread does not panic"))
            .sum::<io::Result<_>>()
    })?;
    Ok((published, started.elapsed()))
}

/// So long, whoever wakes this thread meanwhile.
pub fn pause(long: Duration) {
    let ends = Instant::now() + long;
    while Instant::now() < ends {
        thread::park_timeout(ends.saturating_duration_since(Instant::now()));
    }
}

/// A hub that acknowledges what it has looked at.
pub struct CheckingHub {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
}

/// What came.
#[derive(Default)]
pub struct Seen {
    /// For the first time, by devices below [`Seen::split`] and by the others.
    pub first: [AtomicU64; 2],
    pub again: AtomicU64,
    /// Numbers that were passed over.
    pub missing: AtomicU64,
    pub split: AtomicU64,
    away: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    next: Mutex<Vec<u64>>,
}

impl CheckingHub {
    pub fn start(split: usize) -> io::Result<Self> {
        // Below the range that the kernel takes for outgoing connections: there, loopback can connect to itself while
        // nobody listens.
        let first = 12_000 + u16::try_from(process::id() % 180).expect("below 180") * 100;
        let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
        let port = (first..30_000).find(free).ok_or_else(|| io::Error::other("no free port below 30000"))?;
        let hub = Self { address: SocketAddr::from(([127, 0, 0, 1], port)), seen: Arc::default() };
        hub.seen.split.store(split as u64, Relaxed);
        hub.come_back()?;
        Ok(hub)
    }

    /// Nobody listens, and connections are closed.
    pub fn leave(&self) -> io::Result<()> {
        self.seen.away.store(true, Relaxed);
        // Its thread waits in accept().
        drop(TcpStream::connect(self.address)?);
        for stream in self.seen.streams.lock().expect("no panic").drain(..) {
            // One that is closed already is away, too.
            let _ = stream.shutdown(Shutdown::Both);
        }
        let gone = Instant::now();
        while TcpStream::connect(self.address).is_ok() {
            if gone.elapsed() > Duration::from_secs(10) {
                return Err(io::Error::other("the hub still listens"));
            }
            thread::park_timeout(Duration::from_millis(5));
        }
        Ok(())
    }

    pub fn come_back(&self) -> io::Result<()> {
        let listener = TcpListener::bind(self.address)?;
        self.seen.away.store(false, Relaxed);
        let seen = self.seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if seen.away.load(Relaxed) {
                    return;
                }
                let seen = seen.clone();
                // A link that breaks ends its thread: the gateway was stopped.
                thread::spawn(move || seen.serve(stream));
            }
        });
        Ok(())
    }

    /// Waits until so many came from devices below the split.
    pub fn until(&self, count: u64) -> io::Result<()> {
        let (mut before, mut moved) = (0, Instant::now());
        loop {
            let came = self.seen.first[0].load(Relaxed);
            if came >= count {
                return Ok(());
            }
            if came != before {
                (before, moved) = (came, Instant::now());
            }
            if moved.elapsed() > Duration::from_secs(120) {
                return Err(io::Error::other(format!("{came} of {count} came, and no more")));
            }
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Nothing is missing, and nothing came behind its successor.
    pub fn check(&self) -> io::Result<()> {
        match self.seen.missing.load(Relaxed) {
            0 => Ok(()),
            missing => Err(io::Error::other(format!("{missing} messages did not come in their turn"))),
        }
    }
}

impl Seen {
    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        self.streams.lock().expect("no panic").push(stream.try_clone()?);
        let (mut read, mut chunk, mut replies) = (Vec::new(), vec![0; 256 * 1024], Vec::new());
        loop {
            let count = match stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            read.extend_from_slice(chunk.get(..count).unwrap_or_default());
            let (mut used, mut next) = (0, self.next.lock().expect("no panic"));
            while let Some((first, head, total)) = mqtt::frame(read.get(used..).unwrap_or_default()) {
                let frame = read.get(used..used + total).unwrap_or_default();
                match first >> 4 {
                    1 => replies.extend([0x20, 2, 0, 0]),
                    3 if first & 6 == 2 => {
                        let id_at = mqtt::packet_id_at(frame, head);
                        self.take(frame, head, id_at, &mut next);
                        replies.extend(mqtt::puback(mqtt::number(frame, id_at)));
                    }
                    8 => {
                        let [high, low] = mqtt::number(frame, head).to_be_bytes();
                        replies.extend([0x90, 3, high, low, 1]);
                    }
                    12 => replies.extend([0xD0, 0]),
                    _ => {}
                }
                used += total;
            }
            drop(next);
            read.drain(..used);
            stream.write_all(&replies)?;
            replies.clear();
        }
    }

    fn take(&self, frame: &[u8], head: usize, id_at: usize, next: &mut Vec<u64>) {
        // devices/b17/messages/events/
        let device = digits(frame.get(head + 2 + "devices/b".len()..id_at).unwrap_or_default());
        let number = digits(frame.get(id_at + 2..id_at + 2 + DIGITS).unwrap_or_default());
        let at = usize::try_from(device).unwrap_or_default();
        if next.len() <= at {
            next.resize(at + 1, 0);
        }
        let Some(next) = next.get_mut(at) else { return };
        if number < *next {
            self.again.fetch_add(1, Relaxed);
            return;
        }
        self.missing.fetch_add(number - *next, Relaxed);
        *next = number + 1;
        self.first[usize::from(device >= self.split.load(Relaxed))].fetch_add(1, Relaxed);
    }
}

fn digits(bytes: &[u8]) -> u64 {
    bytes.iter().take_while(|byte| byte.is_ascii_digit()).fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))
}

const DIGITS: usize = 10;
