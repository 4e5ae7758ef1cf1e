//! A hub that acknowledges and forgets, in threads of the bench itself.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
};

use crate::mqtt;

/// Its address.
pub fn start() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A link that breaks ends its thread: the gateway was stopped.
            thread::spawn(move || serve(stream));
        }
    });
    Ok(address)
}

fn serve(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut read, mut chunk, mut replies) = (Vec::new(), vec![0; 256 * 1024], Vec::new());
    loop {
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        read.extend_from_slice(chunk.get(..count).unwrap_or_default());
        let mut used = 0;
        while let Some((first, head, total)) = mqtt::frame(read.get(used..).unwrap_or_default()) {
            let frame = read.get(used..used + total).unwrap_or_default();
            match first >> 4 {
                1 => replies.extend([0x20, 2, 0, 0]),
                3 if first & 6 == 2 => {
                    replies.extend(mqtt::puback(mqtt::number(frame, mqtt::packet_id_at(frame, head))));
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
        read.drain(..used);
        stream.write_all(&replies)?;
        replies.clear();
    }
}
