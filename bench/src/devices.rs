//! Devices: many that say nothing, or some that publish as fast as they are acknowledged.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crate::{mqtt, process::Process, token};

/// What CONNECT carries.
#[derive(Clone, Copy)]
pub enum Says {
    /// A SAS token.
    Token,
    /// No credential: the floor asks for none.
    Nothing,
}

/// What is published, in all.
#[derive(Clone, Copy)]
pub struct Load {
    pub devices: usize,
    /// Unacknowledged messages of one device.
    pub window: usize,
    pub payload_bytes: usize,
    pub messages: usize,
}

impl Load {
    /// Processor time of a server for a message, in microseconds. A tenth is published before, to warm it up.
    pub fn cost(self, server: &Process, address: SocketAddr, says: Says) -> io::Result<f64> {
        let mut streams = connect(address, self.devices, says)?;
        Load { messages: self.messages / 10, ..self }.publish(&mut streams)?;
        let before = server.cpu_ms();
        self.publish(&mut streams)?;
        Ok((server.cpu_ms() - before) as f64 * 1000.0 / self.messages as f64)
    }

    fn publish(self, streams: &mut [TcpStream]) -> io::Result<()> {
        let each = self.messages / self.devices;
        thread::scope(|scope| {
            let runs: Vec<_> = streams
                .iter_mut()
                .enumerate()
                .map(|(number, stream)| scope.spawn(move || self.publish_one(number, stream, each)))
                .collect();
            runs.into_iter().try_for_each(|run| run.join().expect("invariant: a device's thread does not panic"))
        })
    }

    /// Half a window a write, so that the other half is on its way.
    fn publish_one(self, number: usize, stream: &mut TcpStream, count: usize) -> io::Result<()> {
        let topic = format!("devices/{}/messages/events/", name(number));
        let payload = vec![b'x'; self.payload_bytes];
        let batch = (self.window / 2).max(1);
        let frames: Vec<u8> = (1..=batch)
            .flat_map(|id| mqtt::publish(&topic, &payload, u16::try_from(id).expect("a window is small")))
            .collect();
        let mut acknowledgements = vec![0; batch * 4];
        let batches = count.div_ceil(batch);
        stream.write_all(&frames)?;
        for _ in 1..batches {
            // The ids of a batch are free again when its acknowledgements are here.
            stream.read_exact(&mut acknowledgements)?;
            stream.write_all(&frames)?;
        }
        stream.read_exact(&mut acknowledgements)
    }
}

/// Connections of devices that were admitted.
pub fn connect(address: SocketAddr, count: usize, says: Says) -> io::Result<Vec<TcpStream>> {
    (0..count).map(|number| connect_one(address, &name(number), says)).collect()
}

/// Of the device with this number.
pub fn name(number: usize) -> String {
    format!("b{number}")
}

/// A connection of a device that was admitted.
pub fn connect_one(address: SocketAddr, device: &str, says: Says) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let token = match says {
        Says::Token => Some(token::sas(device)),
        Says::Nothing => None,
    };
    stream.write_all(&mqtt::connect(device, token.as_deref().map(|token| (device, token))))?;
    let mut connack = [0; 4];
    stream.read_exact(&mut connack)?;
    match connack {
        [0x20, 2, _, 0] => Ok(stream),
        other => Err(io::Error::other(format!("{device} was answered with {other:x?}"))),
    }
}
