//! A hub that sends commands to devices and says what it was answered: it acknowledges nothing by itself that a test asks
//! about, and forgets nothing.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use super::{Version, device::publish_packet, until, until_some};

/// See the module. One connection at a time: the gateway's newest.
pub struct Commander {
    shared: Arc<Shared>,
    port: u16,
}

struct Shared {
    version: Version,
    state: Mutex<State>,
    ends: AtomicBool,
}

#[derive(Default)]
struct State {
    stream: Option<TcpStream>,
    /// Whether a session was kept: from the second connection on.
    connections: usize,
    filters: Vec<String>,
    /// What was asked for, filter and QoS, in order.
    granted: Vec<(String, u8)>,
    asked: usize,
    answered: Vec<u16>,
    holds_back: bool,
    completed: Vec<u16>,
}

impl Commander {
    /// A hub that speaks this version.
    pub fn start(version: Version) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, ends) = (Mutex::default(), AtomicBool::new(false));
        let shared = Arc::new(Shared { version, state, ends });
        let of_thread = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                if of_thread.ends.load(SeqCst) {
                    return;
                }
                let shared = of_thread.clone();
                thread::spawn(move || serve(&shared, stream.unwrap()));
            }
        });
        Self { shared, port }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits until the gateway has subscribed to this filter.
    #[track_caller]
    pub fn holds(&self, filter: &str) {
        until(&format!("the hub to be asked for {filter}"), PATIENCE, || {
            self.state().filters.iter().any(|held| held == filter)
        });
    }

    /// Filters that are subscribed to.
    pub fn filters(&self) -> Vec<String> {
        self.state().filters.clone()
    }

    /// The QoS that the last SUBSCRIBE to this filter asked for, and was granted.
    pub fn granted(&self, filter: &str) -> Option<u8> {
        self.state().granted.iter().rev().find(|(asked, _)| asked == filter).map(|(_, qos)| *qos)
    }

    /// How many SUBSCRIBEs came, over all connections.
    pub fn asked(&self) -> usize {
        self.state().asked
    }

    /// Sends a message of QoS 1, as new.
    #[track_caller]
    pub fn send(&self, topic: &str, payload: &[u8], packet_id: u16) {
        self.send_as(topic, payload, packet_id, 0);
    }

    /// The same, with more bits in its first byte: 8 is DUP, 1 is RETAIN.
    #[track_caller]
    pub fn send_as(&self, topic: &str, payload: &[u8], packet_id: u16, bits: u8) {
        let mut packet = publish_packet(self.shared.version, topic, payload, 1, packet_id);
        packet[0] |= bits;
        self.say(&packet);
    }

    /// Sends a message of QoS 2; the same bits.
    #[track_caller]
    pub fn send_exactly(&self, topic: &str, payload: &[u8], packet_id: u16, bits: u8) {
        let mut packet = publish_packet(self.shared.version, topic, payload, 2, packet_id);
        packet[0] |= bits;
        self.say(&packet);
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn say(&self, bytes: &[u8]) {
        let mut stream = until_some("the gateway to be connected", PATIENCE, || {
            self.state().stream.as_ref().map(|stream| stream.try_clone().unwrap())
        });
        stream.write_all(bytes).unwrap();
    }

    /// PUBREC is not answered by PUBREL from here on.
    pub fn hold_back(&self) {
        self.state().holds_back = true;
    }

    /// Packet ids of PUBCOMPs, in their order, over all connections.
    pub fn completed(&self) -> Vec<u16> {
        self.state().completed.clone()
    }

    /// Packet ids of PUBACKs and PUBRECs, in their order, over all connections.
    pub fn answered(&self) -> Vec<u16> {
        self.state().answered.clone()
    }

    /// Waits until these were acknowledged and nothing else.
    #[track_caller]
    pub fn answered_for(&self, packet_ids: &[u16]) {
        until(&format!("PUBACKs for {packet_ids:?}"), PATIENCE, || self.answered() == packet_ids);
    }

    /// Breaks the connection.
    pub fn cut(&self) {
        if let Some(stream) = self.state().stream.take() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.state().connections
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

impl Drop for Commander {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
        self.cut();
        // Its thread waits in accept().
        drop(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)));
    }
}

fn serve(shared: &Shared, mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut held = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        while let Some((first, body, rest)) = cut_off(&held) {
            let answer = answer(shared, &stream, first, &body);
            held = rest;
            if stream.write_all(&answer).is_err() {
                return;
            }
        }
        match stream.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => held.extend(chunk.iter().take(count)),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

fn answer(shared: &Shared, stream: &TcpStream, first: u8, body: &[u8]) -> Vec<u8> {
    let mut state = shared.state.lock().unwrap();
    let v5 = shared.version == Version::V5;
    let id = body.get(..2).map_or([0; 2], |id| [id[0], id[1]]);
    match first >> 4 {
        1 => {
            let present = u8::from(state.connections > 0);
            state.connections += 1;
            state.stream = Some(stream.try_clone().unwrap());
            if v5 { vec![0x20, 3, present, 0, 0] } else { vec![0x20, 2, present, 0] }
        }
        3 => {
            let topic = usize::from(u16::from_be_bytes(id));
            let qos = (first >> 1) & 3;
            let id = body.get(2 + topic..4 + topic).filter(|_| qos > 0);
            id.map_or_else(Vec::new, |id| vec![0x40, 2, id[0], id[1]])
        }
        4 => {
            state.answered.push(u16::from_be_bytes(id));
            Vec::new()
        }
        5 => {
            state.answered.push(u16::from_be_bytes(id));
            if state.holds_back { Vec::new() } else { vec![0x62, 2, id[0], id[1]] }
        }
        7 => {
            state.completed.push(u16::from_be_bytes(id));
            Vec::new()
        }
        8 => {
            state.asked += 1;
            let filters = filters(body, v5, 1);
            let mut answer = vec![0x90, u8::try_from(filters.len()).unwrap() + 2 + u8::from(v5), id[0], id[1]];
            answer.extend(v5.then_some(0));
            answer.extend(filters.iter().map(|(_, options)| options & 3));
            state.granted.extend(filters.iter().map(|(filter, options)| (filter.clone(), options & 3)));
            state.filters.extend(filters.into_iter().map(|(filter, _)| filter));
            answer
        }
        10 => {
            let filters = filters(body, v5, 0);
            let mut answer = vec![0xB0, 2, id[0], id[1]];
            if v5 {
                answer[1] += 1 + u8::try_from(filters.len()).unwrap();
                answer.push(0);
                answer.extend(filters.iter().map(|_| 0));
            }
            state.filters.retain(|held| filters.iter().all(|(filter, _)| filter != held));
            answer
        }
        12 => vec![0xD0, 0],
        _ => Vec::new(),
    }
}

/// Filters of a SUBSCRIBE or UNSUBSCRIBE, each followed by so many bytes of options.
fn filters(body: &[u8], v5: bool, options: usize) -> Vec<(String, u8)> {
    let mut at = 2;
    if v5 {
        at += 1 + usize::from(body[2]);
    }
    let mut filters = Vec::new();
    while at + 2 <= body.len() {
        let length = usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
        let filter = String::from_utf8(body[at + 2..at + 2 + length].to_vec()).unwrap();
        at += 2 + length;
        filters.push((filter, if options > 0 { body[at] } else { 0 }));
        at += options;
    }
    filters
}

/// First byte, body, and what follows.
fn cut_off(held: &[u8]) -> Option<(u8, Vec<u8>, Vec<u8>)> {
    let (first, rest) = held.split_first()?;
    let end = rest.iter().take(4).position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = rest.split_at(end + 1);
    let length = digits.iter().rev().fold(0, |sum, digit| sum << 7 | usize::from(digit & 0x7F));
    let (body, after) = rest.split_at_checked(length)?;
    Some((*first, body.to_vec(), after.to_vec()))
}

const PATIENCE: Duration = Duration::from_secs(10);
