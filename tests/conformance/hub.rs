//! A hub in the test's own process: it writes down what the gateway sends, byte for byte, and sends what the test says.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, MutexGuard},
    thread,
};

use crate::{
    support::{Gateway, Version, until_some},
    wire::{PATIENCE, Packet, Peer, cut, packet},
};

/// Where the device d0 publishes.
const EVENTS: &str = "devices/d0/messages/events/";

/// Listens until the test's process ends; its threads end with their connections.
pub struct Hub {
    address: SocketAddr,
    version: Version,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Default)]
struct Seen {
    published: Vec<Packet>,
    acknowledged: Vec<Packet>,
    /// Which connection holds a filter, with which options, and the properties of its SUBSCRIBE.
    filters: HashMap<String, (TcpStream, u8, Vec<u8>)>,
    /// Filters that were taken back.
    ended: Vec<String>,
}

impl Hub {
    /// On a port of its own.
    pub fn start(version: Version) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Seen>> = Arc::default();
        let shared = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                thread::spawn(move || serve(stream, version, &shared));
            }
        });
        Self { address, version, seen }
    }

    /// Where a gateway finds it.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// All PUBLISHes with this topic, when there are so many.
    #[track_caller]
    pub fn published(&self, topic: &str, count: usize) -> Vec<Packet> {
        until_some(&format!("{count} messages on {topic:?}"), PATIENCE, || {
            let found: Vec<Packet> =
                self.seen().published.iter().filter(|p| p.publish(self.version).0 == topic).cloned().collect();
            (found.len() >= count).then_some(found)
        })
    }

    /// Nothing of `d0` has arrived until here: a message that follows it on the same link is the first and only one.
    #[track_caller]
    pub fn has_only_what_follows(&self, gateway: &Gateway) {
        let mut peer = Peer::admitted(gateway, Version::V5, "d0");
        peer.publish(0x32, EVENTS, 1, &[], b"it follows");
        peer.expect(&[0x40, 2, 0, 1]);
        assert_eq!((self.published(EVENTS, 1).len(), self.count()), (1, 1));
    }

    /// How many PUBLISHes came in all.
    pub fn count(&self) -> usize {
        self.seen().published.len()
    }

    /// Sends bytes on the connection that holds the filter, when one does.
    #[track_caller]
    pub fn send(&self, filter: &str, bytes: &[u8]) {
        until_some(&format!("a subscription to {filter}"), PATIENCE, || {
            let seen = self.seen();
            let (stream, ..) = seen.filters.get(filter)?;
            (&*stream).write_all(bytes).ok()
        });
    }

    /// The options with which a filter was placed.
    #[track_caller]
    pub fn options(&self, filter: &str) -> u8 {
        let options = || self.seen().filters.get(filter).map(|(_, options, _)| *options);
        until_some(&format!("a subscription to {filter}"), PATIENCE, options)
    }

    /// Its subscription identifier, as a property.
    #[track_caller]
    pub fn identifier(&self, filter: &str) -> Vec<u8> {
        let properties = || self.seen().filters.get(filter).map(|(.., properties)| properties.clone());
        let properties = until_some(&format!("a subscription to {filter}"), PATIENCE, properties);
        assert_eq!(properties.first(), Some(&0x0B));
        properties
    }

    /// Waits until a filter was taken back.
    #[track_caller]
    pub fn until_ended(&self, filter: &str) {
        let ended = || self.seen().ended.iter().any(|ended| ended == filter).then_some(());
        until_some(&format!("{filter} to be taken back"), PATIENCE, ended);
    }

    /// PUBACKs and what else acknowledges, when there are so many.
    #[track_caller]
    pub fn acknowledged(&self, count: usize) -> Vec<Packet> {
        until_some(&format!("{count} acknowledgements"), PATIENCE, || {
            let seen = self.seen();
            (seen.acknowledged.len() >= count).then(|| seen.acknowledged.clone())
        })
    }

    /// Waits until there is one more of these than there were.
    #[track_caller]
    pub fn until_acknowledged(&self, first: u8, before: &mut usize) {
        *before += 1;
        let enough = || {
            let count = self.seen().acknowledged.iter().filter(|packet| packet.first == first).count();
            (count >= *before).then_some(())
        };
        until_some(&format!("{before} times {first:#x}"), PATIENCE, enough);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

fn serve(mut stream: TcpStream, version: Version, seen: &Mutex<Seen>) {
    let mut buffer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    while let Ok(count) = stream.read(&mut chunk) {
        if count == 0 {
            return;
        }
        buffer.extend(chunk.iter().take(count));
        while let Some((packet, used)) = cut(&buffer) {
            buffer.drain(..used);
            if stream.write_all(&answer(&stream, packet, version, seen)).is_err() {
                return;
            }
        }
    }
}

fn answer(stream: &TcpStream, came: Packet, version: Version, seen: &Mutex<Seen>) -> Vec<u8> {
    let five = version == Version::V5;
    let mut seen = seen.lock().unwrap();
    let id = came.body.get(..2).unwrap_or_default().to_vec();
    let with_codes = |first, codes: &[u8]| packet(first, &[&id[..], if five { &[0] } else { &[] }, codes].concat());
    match came.first >> 4 {
        1 => packet(0x20, if five { &[0, 0, 0] } else { &[0, 0] }),
        3 => {
            let (_, id, _, _) = came.publish(version);
            let qos = came.qos();
            seen.published.push(came);
            if qos == 1 { packet(0x40, &id.to_be_bytes()) } else { Vec::new() }
        }
        4..=7 => {
            let answer = if came.first >> 4 == 5 { packet(0x62, &id) } else { Vec::new() };
            seen.acknowledged.push(came);
            answer
        }
        8 => {
            let filters = filters(&came.body, five, 1);
            let properties = if five { came.body[3..3 + usize::from(came.body[2])].to_vec() } else { Vec::new() };
            for (filter, options) in &filters {
                let held = (stream.try_clone().unwrap(), *options, properties.clone());
                seen.filters.insert(filter.clone(), held);
            }
            with_codes(0x90, &filters.iter().map(|(_, options)| options & 3).collect::<Vec<_>>())
        }
        10 => {
            let filters = filters(&came.body, five, 0);
            let codes = vec![0; if five { filters.len() } else { 0 }];
            for (filter, _) in filters {
                seen.filters.remove(&filter);
                seen.ended.push(filter);
            }
            with_codes(0xB0, &codes)
        }
        12 => vec![0xD0, 0],
        _ => Vec::new(),
    }
}

/// Of SUBSCRIBE (with a byte of options behind each) or UNSUBSCRIBE.
fn filters(body: &[u8], five: bool, options: usize) -> Vec<(String, u8)> {
    let mut rest = &body[2..];
    if five {
        // Short ones: a byte of length.
        rest = &rest[1 + usize::from(rest[0])..];
    }
    let mut found = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let (filter, after) = after.split_at(usize::from(u16::from_be_bytes(*length)));
        let (option, after) = after.split_at(options);
        found.push((String::from_utf8(filter.to_vec()).unwrap(), option.first().copied().unwrap_or(0)));
        rest = after;
    }
    found
}
