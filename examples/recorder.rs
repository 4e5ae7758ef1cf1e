//! A hub for tests that writes down what it is given, and syncs it, before it acknowledges: what a gateway was told to be
//! safe can be read in its log after a kill -9. It speaks MQTT 3.1.1 and 5.0, accepts every CONNECT and delivers nothing.
//!
//! `recorder ADDRESS LOG`; then commands on standard input, one a line; it ends when standard input ends:
//! `ack now` · `ack hold` (never, until told otherwise) · `ack after MS` · `close every N` (0: never) ·
//! `close on TEXT` (a topic that holds it; `-`: none) · `refuse CODE on TEXT` (5.0) · `connects` (how many there were) · `take N` (a second; more is answered
//! with 0x97 on 5.0 and closed on on 3.1.1; 0: all).
//!
//! A line of the log: client id, QoS, topic, payload in hex, properties in hex; separated by tabs.

use std::{
    collections::VecDeque,
    env,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, ErrorKind, Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    process,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

fn main() -> io::Result<()> {
    let arguments: Vec<String> = env::args().collect();
    let [_, address, log] = arguments.as_slice() else {
        eprintln!("usage: recorder ADDRESS LOG");
        process::exit(2);
    };
    let listener = TcpListener::bind(address)?;
    let log = open_log(log)?;
    let hub = Arc::new(Hub {
        log: Mutex::new(log),
        ack_after_ms: 0.into(),
        close_every: 0.into(),
        seen: 0.into(),
        connects: 0.into(),
        close_on: Mutex::default(),
        refuse: Mutex::default(),
        rate: Mutex::new(Rate { a_second: 0, since: Instant::now(), taken: 0 }),
    });
    println!("ready");
    let accepting = hub.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let hub = accepting.clone();
            thread::spawn(move || Link::new(hub, stream).and_then(|mut link| link.run()));
        }
    });
    for line in io::stdin().lock().lines() {
        match &*line? {
            "connects" => println!("{}", hub.connects.load(Relaxed)),
            command => {
                hub.obey(command);
                println!("done");
            }
        }
    }
    Ok(())
}

/// What a kill tore off is cut: it was never synced as a whole, and so never acknowledged.
fn open_log(path: &str) -> io::Result<File> {
    let log = OpenOptions::new().create(true).append(true).open(path)?;
    let whole = fs::read(path)?.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    log.set_len(whole as u64)?;
    log.sync_all()?;
    Ok(log)
}

/// What all connections share.
struct Hub {
    log: Mutex<File>,
    ack_after_ms: AtomicU64,
    close_every: AtomicU64,
    seen: AtomicU64,
    connects: AtomicU64,
    close_on: Mutex<Option<String>>,
    refuse: Mutex<Option<(u8, String)>>,
    rate: Mutex<Rate>,
}

/// A text; `-` is none.
fn named(text: &str) -> Option<String> {
    (text != "-").then(|| text.to_owned())
}

/// What is taken of one second.
struct Rate {
    a_second: u64,
    since: Instant,
    taken: u64,
}

impl Hub {
    fn obey(&self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["ack", "now"] => self.ack_after_ms.store(0, Relaxed),
            ["ack", "hold"] => self.ack_after_ms.store(HOLD, Relaxed),
            ["ack", "after", ms] => self.ack_after_ms.store(ms.parse().expect("milliseconds"), Relaxed),
            ["close", "every", n] => self.close_every.store(n.parse().expect("a number"), Relaxed),
            ["close", "on", text] => *self.close_on.lock().expect("no panic") = named(text),
            ["refuse", code, "on", text] => {
                let code = code.parse().expect("a code");
                *self.refuse.lock().expect("no panic") = named(text).map(|text| (code, text));
            }
            ["take", n] => self.rate.lock().expect("no panic").a_second = n.parse().expect("a number"),
            _ => panic!("no such command: {command}"),
        }
    }

    /// The reason code with which a message is refused; none: it is taken.
    fn refuses(&self, topic: &str) -> Option<u8> {
        let refuse = self.refuse.lock().expect("no panic");
        refuse.as_ref().filter(|(_, text)| topic.contains(text)).map(|(code, _)| *code)
    }

    /// Whether the connection is closed on a message of this topic.
    fn closes_on(&self, topic: &str) -> bool {
        self.close_on.lock().expect("no panic").as_ref().is_some_and(|text| topic.contains(text))
    }

    /// Whether another message is taken in this second.
    fn takes(&self) -> bool {
        let mut rate = self.rate.lock().expect("no panic");
        if rate.since.elapsed() >= Duration::from_secs(1) {
            (rate.since, rate.taken) = (Instant::now(), 0);
        }
        rate.taken += 1;
        rate.a_second == 0 || rate.taken <= rate.a_second
    }

    /// Whether this message is one on which to close the connection.
    fn closes(&self) -> bool {
        let every = self.close_every.load(Relaxed);
        every > 0 && (self.seen.fetch_add(1, Relaxed) + 1).is_multiple_of(every)
    }

    /// Appends and syncs.
    fn record(&self, lines: &str) -> io::Result<()> {
        let mut log = self.log.lock().expect("invariant: no thread panics while it writes");
        log.write_all(lines.as_bytes())?;
        log.sync_data()
    }
}

/// One connection of a gateway.
struct Link {
    hub: Arc<Hub>,
    stream: TcpStream,
    read: Vec<u8>,
    client_id: String,
    version: u8,
    /// Acknowledgements, and since when they wait.
    waiting: VecDeque<(Instant, u16, u8)>,
}

impl Link {
    fn new(hub: Arc<Hub>, stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(5)))?;
        Ok(Self { hub, stream, read: Vec::new(), client_id: String::new(), version: 4, waiting: VecDeque::new() })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut chunk = vec![0; 256 * 1024];
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => self.read.extend(chunk.iter().take(count)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(e) => return Err(e),
            }
            let mut lines = String::new();
            let mut ids = Vec::new();
            let mut replies = Vec::new();
            let open = self.packets(&mut lines, &mut ids, &mut replies)?;
            if !lines.is_empty() {
                self.hub.record(&lines)?;
            }
            self.waiting.extend(ids.into_iter().map(|(id, code)| (Instant::now(), id, code)));
            self.acknowledge(&mut replies);
            self.stream.write_all(&replies)?;
            if !open {
                return self.close();
            }
        }
    }

    /// Closes so that what was acknowledged arrives: to close with unread bytes would reset the connection.
    fn close(&mut self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)?;
        self.stream.set_read_timeout(Some(Duration::from_secs(1)))?;
        io::copy(&mut self.stream, &mut io::sink()).map(|_| ())
    }

    /// Takes every whole packet; `false`: the connection is to be closed.
    fn packets(&mut self, lines: &mut String, ids: &mut Vec<(u16, u8)>, replies: &mut Vec<u8>) -> io::Result<bool> {
        let read = std::mem::take(&mut self.read);
        let mut rest = read.as_slice();
        while let Some((first, body, after)) = split_packet(rest) {
            rest = after;
            match first >> 4 {
                1 => self.connect(body, replies)?,
                3 if self.hub.closes() => return Ok(false),
                3 if !self.publish(first, body, lines, ids)? => return Ok(false),
                3 => {}
                8 => self.suback(0x90, body, replies)?,
                10 => self.suback(0xB0, body, replies)?,
                12 => replies.extend([0xD0, 0]),
                14 => return Ok(false),
                _ => {}
            }
        }
        self.read = rest.to_vec();
        Ok(true)
    }

    fn connect(&mut self, body: &[u8], replies: &mut Vec<u8>) -> io::Result<()> {
        self.hub.connects.fetch_add(1, Relaxed);
        let mut fields = Fields(body);
        fields.text()?;
        self.version = fields.byte()?;
        fields.take(3)?;
        if self.version == 5 {
            fields.properties()?;
        }
        self.client_id = String::from_utf8_lossy(fields.text()?).into_owned();
        replies.extend_from_slice(if self.version == 5 { &[0x20, 3, 0, 0, 0] } else { &[0x20, 2, 0, 0] });
        Ok(())
    }

    /// `false`: the connection is to be closed.
    fn publish(&mut self, first: u8, body: &[u8], lines: &mut String, ids: &mut Vec<(u16, u8)>) -> io::Result<bool> {
        let mut fields = Fields(body);
        let topic = String::from_utf8_lossy(fields.text()?).into_owned();
        let qos = (first >> 1) & 3;
        if self.hub.closes_on(&topic) {
            return Ok(false);
        }
        let taken = self.hub.takes();
        if !taken && self.version == 4 {
            return Ok(false);
        }
        let code = if taken { self.hub.refuses(&topic) } else { Some(0x97) };
        if qos > 0 {
            ids.push((fields.number()?, code.unwrap_or_default()));
        }
        if code.is_some() {
            return Ok(true);
        }
        let properties = if self.version == 5 { fields.properties()? } else { &[] };
        let (payload, properties) = (hex(fields.0), hex(properties));
        writeln!(lines, "{}\t{qos}\t{topic}\t{payload}\t{properties}", self.client_id).expect("a String takes all");
        Ok(true)
    }

    /// SUBACK that grants QoS 1, or UNSUBACK.
    fn suback(&self, first: u8, body: &[u8], replies: &mut Vec<u8>) -> io::Result<()> {
        let mut fields = Fields(body);
        let id = fields.number()?.to_be_bytes();
        if self.version == 5 {
            fields.properties()?;
        }
        let mut codes = Vec::new();
        while !fields.0.is_empty() {
            fields.text()?;
            if first == 0x90 {
                fields.byte()?;
                codes.push(1);
            } else if self.version == 5 {
                codes.push(0);
            }
        }
        let properties: &[u8] = if self.version == 5 { &[0] } else { &[] };
        let length = 2 + properties.len() + codes.len();
        replies.extend([first, u8::try_from(length).expect("a test subscribes to few filters at once")]);
        replies.extend(id.iter().chain(properties).chain(&codes));
        Ok(())
    }

    fn acknowledge(&mut self, replies: &mut Vec<u8>) {
        let after = self.hub.ack_after_ms.load(Relaxed);
        while let Some((since, id, code)) = self.waiting.front().copied() {
            if after == HOLD || since.elapsed() < Duration::from_millis(after) {
                return;
            }
            replies.extend([0x40, if code == 0 { 2 } else { 3 }]);
            replies.extend(id.to_be_bytes());
            if code != 0 {
                replies.push(code);
            }
            self.waiting.pop_front();
        }
    }
}

/// The fields of a packet, taken from the front.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(ErrorKind::InvalidData)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> io::Result<u8> {
        Ok(self.take(1)?.iter().copied().sum())
    }

    fn number(&mut self) -> io::Result<u16> {
        Ok(self.take(2)?.iter().fold(0, |sum, byte| sum << 8 | u16::from(*byte)))
    }

    fn text(&mut self) -> io::Result<&'a [u8]> {
        let length = self.number()?;
        self.take(length.into())
    }

    fn properties(&mut self) -> io::Result<&'a [u8]> {
        let (length, rest) = variable(self.0).ok_or(ErrorKind::InvalidData)?;
        self.0 = rest;
        self.take(length)
    }
}

/// First byte, body, and what follows; `None`: not all there yet.
fn split_packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (first, rest) = bytes.split_first()?;
    let (length, rest) = variable(rest)?;
    let (body, after) = rest.split_at_checked(length)?;
    Some((*first, body, after))
}

fn variable(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let end = bytes.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at_checked(end + 1)?;
    Some((digits.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7F)), rest))
}

fn hex(bytes: &[u8]) -> String {
    let digit = |half: u8| char::from(if half < 10 { b'0' + half } else { b'a' + half - 10 });
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
    }
    text
}

/// `ack hold`: for ever.
const HOLD: u64 = u64::MAX;
